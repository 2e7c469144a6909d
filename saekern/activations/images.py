"""Vision transformers: a folder of images → rows, one a patch. Through transformers and Pillow, without torchvision."""

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern.activations.cache import FORMAT, VERSION, ActivationCache
from saekern.activations.harvest import DTYPES, capture, fill, model_hash, start
from saekern.activations.hugging_face import HookedModule, check_hook, explain, hooked, import_transformers

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
FILES = "images.json"
DEEP_MODES = ("F", "I")  # and I;16 with its variants: Pillow would clip them to 255 without a word


class Patch(NamedTuple):
    """Where a row came from."""

    file: str  # relative to the harvested folder
    row: int  # of the grid of patches, from the top
    column: int  # from the left


def load_vision_model(name: str, device: str = "cpu") -> tuple[HookedModule, Any]:
    """A vision transformer and its image processor, from the Hugging Face hub or a folder: DINOv2, SigLIP, ViT, CLIP, …

    Of a model of images and text it is the part for images. The processor is the one on Pillow, which gives the same
    pixels whether torchvision is there or not.

    Raises:
        ImportError: transformers or Pillow is missing or cannot be imported.
        OSError: the hub cannot be reached, or has no such model.
    """
    _pillow()
    transformers = import_transformers()
    choice: dict[str, Any] = {"backend": "pil"}
    if importlib.util.find_spec("transformers.image_processing_backends") is None:
        choice = {"use_fast": False}  # the same in transformers 4
    try:
        model = transformers.AutoModel.from_pretrained(name, dtype="auto")
        processor = transformers.AutoImageProcessor.from_pretrained(name, **choice)
    except ImportError as error:
        raise ImportError(explain(error)) from error
    except Exception as error:  # offline shows as OSError, a httpx or a requests error, depending on versions
        raise OSError(f"model {name!r} could not be loaded ({type(error).__name__}: {error})") from error
    model = getattr(model, "vision_model", model)
    return HookedModule(model.to(device).eval().requires_grad_(False), name=name), processor


def image_files(folder: str | Path) -> list[Path]:
    """The images below a folder, in the order of their relative paths.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    folder = Path(folder)
    files = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise FileNotFoundError(f"{folder}: no images there ({', '.join(SUFFIXES)})")
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def harvest_images(
    model: Any,
    hook: str,
    images: str | Path | Sequence[str | Path],
    path: str | Path,
    *,
    processor: Any,
    batch: int = 32,
    special_tokens: int | None = None,
    patch_size: int | None = None,
    dtype: str = "float32",
    shard_rows: int = 131_072,
    progress: bool = True,
) -> ActivationCache:
    """Runs a vision transformer over images and stores what a hook sees, one row a patch.

    Rows are ordered by image, then by the patch's row and column; `patch_of` gives the place of a row, `images.json`
    beside the rows lists the files. CLS and register tokens, which come first, have no rows. Run again after a kill, it
    continues with the first shard that is missing; the layers after the hook are not run.

    Args:
        model: a Hugging Face vision model, or what `load_vision_model` gave. It runs in its own dtype.
        hook: a submodule's name, such as "encoder.layer.8".
        images: a folder, searched for images below it, or files.
        processor: from `load_vision_model` or transformers; or a function of [one RGB PIL image] that returns pixels
            [1, 3, H, W]. All images must come out at one size.
        batch: images a forward pass.
        special_tokens: tokens before the patches; None: what is there beyond the patches, checked against the config.
        patch_size: in pixels; None: the config's.
        path, dtype, shard_rows, progress: as in `harvest`.

    Raises:
        ValueError: an image that cannot be read (it is named), tokens that are not a grid of patches, an unknown hook,
            a folder that holds another harvest, non-finite rows.
        OSError: the disk is full or becomes full; finished shards stay, and the same call continues.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {sorted(DTYPES)}, got {dtype!r}")
    if batch < 1 or shard_rows < 1:
        raise ValueError(f"batch and shard_rows: expected at least 1, got {batch} and {shard_rows}")
    model = hooked(model)
    check_hook(model, hook)
    if isinstance(images, str | Path):
        files = image_files(images)
        names = [file.relative_to(images).as_posix() for file in files]
    else:
        files = [Path(file) for file in images]
        names = [str(file) for file in files]
    if not files:
        raise ValueError("images: expected at least one file, got none")
    path, pixel_dtype = Path(path), _dtype(model)

    def tokens(part: list[Path]) -> Tensor:
        pixels = torch.cat([_pixels(file, processor, manifest["pixels"]) for file in part])
        return capture(model, hook, pixels.to(pixel_dtype))

    first = _pixels(files[0], processor, None)
    seen = capture(model, hook, first.to(pixel_dtype))
    size = patch_size or _config(model, "patch_size")
    if size is None:
        raise ValueError("patch_size: expected the patches' size in pixels, as this model's config names none")
    height, width = (size, size) if isinstance(size, int) else size
    grid = [first.shape[2] // height, first.shape[3] // width]
    special = _special(seen, grid, special_tokens, _config(model, "num_register_tokens"))
    patches = grid[0] * grid[1]
    per_shard = max(1, round(shard_rows / patches))
    counts = [min(per_shard, len(files) - begin) for begin in range(0, len(files), per_shard)]
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": str(model.cfg.model_name),
        "model_sha256": model_hash(model),
        "hook": hook,
        "dataset_sha256": _digest(names, files),
        "processor": _described(processor),
        "dtype": dtype,
        "width": seen.shape[-1],
        "images": len(files),
        "pixels": list(first.shape[1:]),
        "grid": grid,
        "special_tokens": special,
        "text": None,
        "shard_images": per_shard,
        "shards": [count * patches for count in counts],
        "rows": len(files) * patches,
    }

    def rows_of(index: int) -> Iterator[Tensor]:
        part = files[index * per_shard : (index + 1) * per_shard]
        for begin in range(0, len(part), batch):
            yield tokens(part[begin : begin + batch])[:, special:].flatten(2).flatten(0, 1)

    start(path, manifest, lambda: {FILES: (json.dumps(names, indent=0) + "\n").encode()})
    return fill(path, manifest, rows_of, progress)


def patch_of(cache: ActivationCache, row: int) -> Patch:
    """The image and the place of a row of a cache that `harvest_images` made."""
    if "grid" not in cache.manifest:
        raise ValueError(f"{cache.path}: its rows did not come from images")
    if not 0 <= row < len(cache):
        raise IndexError(f"row: expected 0 to {len(cache) - 1}, got {row}")
    height, width = cache.manifest["grid"]
    image, place = divmod(row, height * width)
    return Patch(json.loads((cache.path / FILES).read_text())[image], *divmod(place, width))


def open_image(file: str | Path) -> Any:
    """The image, upright (EXIF), as 8-bit RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what is there cannot be read as an image, or has more than 8 bits a channel. The file is named.
    """
    image_module, operations = _pillow()
    try:
        with image_module.open(file) as image:
            image.load()
            if image.mode.startswith(DEEP_MODES):
                raise ValueError(f"mode {image.mode}; expected 8 bits a channel")
            upright = operations.exif_transpose(image)
            return (upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet
        raise ValueError(f"{file}: not a readable image ({type(error).__name__}: {error})") from error


def _pixels(file: Path, processor: Any, expected: list[int] | None) -> Tensor:
    image = open_image(file)
    if hasattr(processor, "model_input_names"):  # of transformers
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
    else:
        pixels = processor([image])
    if pixels.dim() != 4 or len(pixels) != 1 or (expected is not None and list(pixels.shape[1:]) != expected):
        like = [1, *(expected or ("C", "H", "W"))]
        raise ValueError(f"{file}: expected pixels {like} from the processor, got {list(pixels.shape)}")
    return pixels


def _special(seen: Tensor, grid: list[int], given: int | None, registers: int | None) -> int:
    patches = grid[0] * grid[1]
    extra = seen.shape[1] - patches if seen.dim() >= 3 else -1
    # CLS (or none: SigLIP), a second one for distillation (DeiT), or CLS and registers.
    known = (given,) if given is not None else (1 + registers,) if registers else (0, 1, 2)
    if extra not in known:
        expected = " or ".join(str(patches + count) for count in known)
        raise ValueError(
            f"hook: expected {expected} tokens for {grid[0]} x {grid[1]} patches, got activations {list(seen.shape)};"
            " if all is right, pass special_tokens, the number of tokens before the patches"
        )
    return extra


def _config(model: Any, name: str) -> Any:
    config = getattr(getattr(model, "model", model), "config", None)
    found = getattr(config, name, None)
    return found if found is not None else getattr(getattr(config, "vision_config", None), name, None)


def _dtype(model: Any) -> torch.dtype:
    parameters = getattr(model, "model", model).parameters()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def _described(processor: Any) -> str:
    if not hasattr(processor, "to_dict"):
        return getattr(processor, "__qualname__", type(processor).__qualname__)
    return hashlib.sha256(json.dumps(processor.to_dict(), sort_keys=True, default=str).encode()).hexdigest()


def _digest(names: list[str], files: list[Path]) -> str:
    """SHA-256 of the names and the contents: both are read again anyway, and decoding takes longer."""
    digest = hashlib.sha256()
    for name, file in zip(names, files, strict=True):
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _pillow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("PIL.Image"), importlib.import_module("PIL.ImageOps")
    except ImportError as error:
        raise ImportError("images need Pillow: pip install 'saekern[vision]'") from error
