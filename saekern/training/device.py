"""The device by its name, checked before anything is started on it."""

import importlib.util
import re

import torch

DEVICES = "cpu, cuda or cuda:N"


def parse_device(name: str) -> torch.device:
    """Whether it is there is another question: see `usable_device`.

    Raises:
        ValueError: another name.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device: expected {DEVICES}, got {name!r}")
    return torch.device(name)


def usable_device(name: str) -> torch.device:
    """The device `name`, on which the ops will run.

    Raises:
        ValueError: another name, no such GPU, or a GPU without Triton, which the kernels need.
    """
    device = parse_device(name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        built = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise ValueError(f"device: {name!r} was asked for, but this PyTorch ({torch.__version__}) {built}; use cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"device: expected cuda:0 to cuda:{count - 1}, got {name!r}")
    if importlib.util.find_spec("triton") is None:
        raise ValueError(f"device: {name!r} needs Triton, which is not installed: pip install 'triton>=3.6'")
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
