"""The matchings of all pairs of runs: in memory, or a folder with one safetensors file a pair and a manifest.

<folder>/manifest.json            format, version, method, seeds, sizes, one key a dictionary
<folder>/000-001.safetensors      a_index, a_cosine, a_live, b_index, b_cosine, b_live; a is run 0, b is run 1

A file is named by the positions of its runs and knows by its key which dictionaries it is of, so that runs which move,
because others were put between them or taken out, take their files along.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import safetensors
from safetensors.torch import save
from torch import Tensor

from saekern.matching.result import Matching, Pair

FORMAT = "saekern-pairs"
VERSION = 1
MANIFEST = "manifest.json"


class PairStore:
    """The matchings of every pair of S runs, both directions. Made by `match_all`, reopened by `PairStore.open`.

    `for pair in store` yields a `Pair` for every i < j, reading one file at a time; `store[i, j]` is the `Matching`
    from run i to run j in either order; `len(store)` counts the pairs i < j.
    """

    method: str
    """"nearest" or "assignment"."""
    seeds: list[int]
    """[S] the label of each run."""
    sizes: list[int]
    """[S] latents of each run."""
    keys: list[str]
    """[S] hash of each run's atoms and of which are live."""
    folder: Path | None
    """Where the pairs lie; None: in memory."""

    def __init__(
        self,
        method: str,
        seeds: Sequence[int],
        sizes: Sequence[int],
        keys: Sequence[str],
        *,
        folder: Path | None = None,
        memory: dict[tuple[int, int], tuple[Pair, Tensor, Tensor]] | None = None,
    ):
        self.method, self.seeds, self.sizes, self.folder = method, list(seeds), list(sizes), folder
        self.keys = list(keys)
        self._memory = {} if memory is None else memory

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "PairStore":
        """The finished store in `folder`.

        Raises:
            FileNotFoundError: no manifest there, or a pair's file is missing.
            ValueError: not a pair store, or one of a newer version.
        """
        folder = Path(folder)
        header = read_manifest(folder)
        store = cls(header["method"], header["seeds"], header["sizes"], header["keys"], folder=folder)
        missing = [path for i, j in store.positions() if not (path := pair_path(folder, i, j)).exists()]
        if missing:
            raise FileNotFoundError(
                f"{missing[0]}: one of {len(missing)} missing pairs of {len(store)}; match_all on this store makes them"
            )
        return store

    def positions(self) -> Iterator[tuple[int, int]]:
        return combinations(range(len(self.sizes)), 2)

    def __len__(self) -> int:
        return len(self.sizes) * (len(self.sizes) - 1) // 2

    def __iter__(self) -> Iterator[Pair]:
        for i, j in self.positions():
            yield self._read(i, j)[0]

    def __getitem__(self, position: tuple[int, int]) -> Matching:
        i, j = position
        runs = len(self.sizes)
        if not (0 <= i < runs and 0 <= j < runs and i != j):
            raise IndexError(f"pair: expected two different runs in 0..{runs - 1}, got {i}, {j}")
        pair = self._read(min(i, j), max(i, j))[0]
        return pair.forward if i < j else pair.backward

    def live(self, i: int) -> Tensor:
        """[F] bool: run i's latents that took part; the others were dead or zero."""
        return self._read(0, i)[2] if i > 0 else self._read(0, 1)[1]

    def _read(self, i: int, j: int) -> tuple[Pair, Tensor, Tensor]:
        if self.folder is None:
            return self._memory[i, j]
        return read_pair(self.folder, i, j, pair_key(self.method, self.keys[i], self.keys[j]))

    def __repr__(self) -> str:
        where = "memory" if self.folder is None else str(self.folder)
        return f"PairStore({self.method}, {len(self.sizes)} runs, {len(self)} pairs, {where})"


def dictionary_key(rows: Tensor, live: Tensor) -> str:
    """A hash of the atoms' bytes and of which of them are live: what a pair's result depends on."""
    digest = hashlib.sha256(f"{list(rows.shape)} {rows.dtype}".encode())
    for tensor in (rows, live):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def pair_key(method: str, a: str, b: str) -> str:
    return hashlib.sha256(f"{FORMAT} {VERSION} {method} {a} {b}".encode()).hexdigest()


def pair_path(folder: Path, i: int, j: int) -> Path:
    return folder / f"{i:03d}-{j:03d}.safetensors"


def write_manifest(folder: Path, method: str, seeds: Sequence[int], sizes: Sequence[int], keys: Sequence[str]) -> None:
    header = {"format": FORMAT, "version": VERSION, "method": method}
    header |= {"seeds": list(seeds), "sizes": list(sizes), "keys": list(keys)}
    write_atomic(folder / MANIFEST, (json.dumps(header, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a folder written by match_all")
    try:
        header = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); run match_all with the same store again") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT!r}")
    if header["version"] > VERSION:
        raise ValueError(
            f"{path}: version {header['version']} is newer than this saekern reads ({VERSION}); upgrade it"
        )
    return header


def write_pair(folder: Path, pair: Pair, live_a: Tensor, live_b: Tensor, key: str) -> None:
    tensors = {"a_index": pair.forward.index, "a_cosine": pair.forward.cosine, "a_live": live_a}
    tensors |= {"b_index": pair.backward.index, "b_cosine": pair.backward.cosine, "b_live": live_b}
    # One entry only: safetensors writes several in random order, and the same pairs should be the same bytes.
    data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"key": key})
    write_atomic(pair_path(folder, pair.i, pair.j), data)


def key_of(path: Path) -> str | None:
    """The key in the header of a pair's file, if it is there and whole."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:  # checks the file's length against its header
            return (file.metadata() or {}).get("key")
    except safetensors.SafetensorError:
        return None


def missing_pairs(folder: Path, keys: Mapping[tuple[int, int], str]) -> list[tuple[int, int]]:
    """Positions (i, j) whose pair, named by its key, is not in the folder. Reads headers only.

    A pair that lies under other positions is renamed, in two steps so that files may change places: `<key>.moving`
    first, then its new name. A kill between the two leaves files of the first kind, which the next call finds.
    Pairs in the opposite order of their dictionaries are not looked for: their cosines may differ in the last bit.
    """
    absent = {keys[at]: at for at in keys if key_of(pair_path(folder, *at)) != keys[at]}
    settled = {pair_path(folder, *at) for at in keys.keys() - set(absent.values())}
    strays = sorted(folder.glob("*.moving"))
    found: dict[str, Path] = {}
    if absent:
        for path in (*strays, *sorted(folder.glob("*-*.safetensors"))):
            key = None if path in settled else key_of(path)
            if key in absent:
                found.setdefault(key, path)
    for key, path in found.items():
        os.replace(path, folder / f"{key}.moving")
    for key in found:
        os.replace(folder / f"{key}.moving", pair_path(folder, *absent[key]))
    for path in strays:
        path.unlink(missing_ok=True)
    return [at for at in keys if key_of(pair_path(folder, *at)) != keys[at]] if absent else []


def read_pair(folder: Path, i: int, j: int, key: str) -> tuple[Pair, Tensor, Tensor]:
    """Raises ValueError for a file that is damaged or of other dictionaries, FileNotFoundError for one that is gone."""
    path = pair_path(folder, i, j)
    remedy = "run match_all with the same store again to recompute it"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; {remedy}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("key")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); {remedy}") from None
    if found != key:
        raise ValueError(f"{path}: made from other dictionaries than the manifest names; {remedy}")
    forward = Matching(tensors["a_index"], tensors["a_cosine"])
    backward = Matching(tensors["b_index"], tensors["b_cosine"])
    return Pair(i, j, forward, backward), tensors["a_live"], tensors["b_live"]


def write_atomic(path: Path, data: bytes) -> None:
    """Under a temporary name, then renamed: a reader finds the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"cannot write {path} ({error.strerror}); what was written before it is whole"
        ) from None
