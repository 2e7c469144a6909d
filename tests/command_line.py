"""A command as a person would run it, without a process."""

from saekern import cli


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own way out
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err
