"""The folder of a training run, such that a kill at any moment loses only the steps since the last checkpoint.

config.json          what is trained, written before the first step; a resumed run must ask for the same
train.jsonl          one line a logged step; cut back on resume to the length that the checkpoint recorded
snapshots/           parameters at chosen steps
state.safetensors    parameters, moments, position, firing record and random state: all that resume reads
sae.safetensors      the parameters, for readers; written after the state, so never ahead of it
"""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from saekern.sae import SAE, files
from saekern.training.config import TrainConfig
from saekern.training.optimizer import Adam
from saekern.training.watch import Watch

log = logging.getLogger(__name__)
STATE = "state.safetensors"
LOG = "train.jsonl"
FREE = ("checkpoint_every",)  # settings that may differ on resume: they do not change what is computed


@dataclasses.dataclass
class Position:
    """Everything that changes while training, but for the random states."""

    sae: SAE
    optimizer: Adam
    last_fired: Tensor  # [F] int64: rows seen when each latent last fired
    watch: Watch
    step: int = 0

    @property
    def device(self) -> torch.device:
        return self.last_fired.device


class Folder:
    """Reads and writes the files of one run."""

    def __init__(
        self,
        path: str | os.PathLike,
        sae: SAE,
        config: TrainConfig,
        data: dict[str, Any],
        snapshot_dtype: torch.dtype | None = None,
    ) -> None:
        self.path = Path(path)
        self.snapshot_dtype = snapshot_dtype
        self.log: BinaryIO | None = None
        described = {"training": dataclasses.asdict(config), "data": data, "device": sae.b_dec.device.type}
        if snapshot_dtype is not None:  # files from before there was a choice do not name it
            described["snapshots"] = {"dtype": str(snapshot_dtype).removeprefix("torch.")}
        self.described = files.describe(sae, described)
        self.described = json.loads(json.dumps(self.described))  # tuples become lists, as in the file

    def resume(self, position: Position) -> bool:
        """Loads the checkpoint into `position`; False and a prepared folder if there is none yet."""
        if (self.path / files.CONFIG).is_file():
            self._check_same(files.read_config(self.path))
        else:
            files.write_json(self.path / files.CONFIG, self.described)
        if not (self.path / STATE).is_file():
            if (self.path / files.WEIGHTS).is_file():
                raise ValueError(f"{self.path} holds {files.WEIGHTS} but no {STATE}: not a training run, left as it is")
            self._open_log(0)
            return False
        tensors, metadata = files.read_tensors(self.path / STATE)
        where = json.loads(metadata["position"])
        position.sae.load_state_dict({k[4:]: t for k, t in tensors.items() if k.startswith("sae.")})
        position.optimizer.load(tensors, where["step"])
        position.last_fired.copy_(tensors["last_fired"])
        position.step = where["step"]
        position.watch.load(where)
        torch.set_rng_state(tensors["random"])
        if position.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"], position.device)
            if where["gpu"] != (here := torch.cuda.get_device_name(position.device)):
                log.warning("%s was written on %s, this is %s: the bits may differ", self.path, where["gpu"], here)
        self._open_log(where["log_bytes"])
        if not self._weights_are(position.sae):  # killed between the two files of a checkpoint
            files.write_weights(self.path / files.WEIGHTS, position.sae)
        return True

    def save(self, position: Position) -> None:
        assert self.log is not None
        os.fsync(self.log.fileno())
        tensors = {f"sae.{name}": tensor for name, tensor in position.sae.state_dict().items()}
        tensors |= position.optimizer.state()
        tensors |= {"last_fired": position.last_fired, "random": torch.get_rng_state()}
        where = {"step": position.step, "log_bytes": self.log.tell(), **position.watch.state()}
        if position.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(position.device)
            where["gpu"] = torch.cuda.get_device_name(position.device)
        files.write_tensors(self.path / STATE, tensors, {"position": json.dumps(where)})
        files.write_weights(self.path / files.WEIGHTS, position.sae)

    def snapshot(self, position: Position) -> None:
        files.write_weights(
            self.path / "snapshots" / f"{position.step:08d}.safetensors", position.sae, self.snapshot_dtype
        )

    def write_line(self, line: dict[str, Any]) -> None:
        assert self.log is not None
        try:
            self.log.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self.log.flush()
        except OSError as error:
            raise OSError(f"cannot write {self.path / LOG} ({error}); the last checkpoint is intact") from error

    def read_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / LOG).read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

    def _weights_are(self, sae: SAE) -> bool:
        try:
            stored, _ = files.read_tensors(self.path / files.WEIGHTS)
        except (FileNotFoundError, ValueError):
            return False
        return all(name in stored and torch.equal(stored[name], t.cpu()) for name, t in sae.state_dict().items())

    def _open_log(self, length: int) -> None:
        file = self.path / LOG
        try:
            self.log = open(file, "ab")  # noqa: SIM115
        except OSError as error:
            raise OSError(f"cannot write {file} ({error})") from error
        if self.log.tell() < length:
            raise ValueError(f"{file}: expected at least {length} bytes as the checkpoint says, got {self.log.tell()}")
        self.log.truncate(length)
        self.log.seek(length)

    def _check_same(self, found: dict[str, Any]) -> None:
        wanted, found = _flatten(self.described), _flatten(found)
        # The model and the hook are in the fingerprint of the rows, and not in the files of older runs.
        free = ("saekern", "torch", "model", "hook", *(f"training.{name}" for name in FREE))
        ignored = {f"provenance.{name}" for name in free}
        for key in sorted((wanted.keys() | found.keys()) - ignored):
            if wanted.get(key) != found.get(key):
                raise ValueError(
                    f"{self.path} holds another run: {key} is {json.dumps(found.get(key))} there, "
                    f"{json.dumps(wanted.get(key))} here; choose another folder or the same settings"
                )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
