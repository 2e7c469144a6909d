"""`saekern bench`: hands its arguments to saekern.bench."""


def run(arguments: list[str]) -> int:
    from saekern.bench.__main__ import main

    return main([argument for argument in arguments if argument != "--debug"])
