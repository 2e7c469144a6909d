"""Images made here through tiny random vision transformers: the right patches, in a recorded order."""

import json

import numpy as np
import pytest
import torch

from saekern.activations import harvest_images, image_files, load_vision_model, open_cache, patch_of
from saekern.activations.images import open_image

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def vit():
    config = transformers.ViTConfig(**SMALL, intermediate_size=32)
    return transformers.ViTModel(config, add_pooling_layer=False), "layers.1", "ViTImageProcessor", 1


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)), "encoder.layer.1", "BitImageProcessor", 1


def registers():
    config = transformers.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=4)
    return transformers.Dinov2WithRegistersModel(config), "encoder.layer.1", "BitImageProcessor", 5


def siglip():
    config = transformers.SiglipVisionConfig(**SMALL, intermediate_size=32)
    return transformers.SiglipVisionModel(config), "encoder.layers.1", "SiglipImageProcessor", 0


MODELS = pytest.mark.parametrize("make", [vit, dinov2, registers, siglip])


def processor_file(folder, kind):
    """What the released models have: DINOv2 resizes the short edge and crops the centre, the others resize."""
    square = {"height": 32, "width": 32}
    settings = {"image_processor_type": kind, "do_resize": True, "do_normalize": True, "do_rescale": True}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3, "rescale_factor": 1 / 255}
    if kind == "BitImageProcessor":
        settings |= {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": square}
    else:
        settings |= {"size": square}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def saved(make, tmp_path):
    torch.manual_seed(2)
    model, hook, kind, special = make()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor_file(folder, kind)
    return *load_vision_model(str(folder)), hook, special


@pytest.fixture
def photos(tmp_path):
    """Five images of several sizes and modes, in two folders."""
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name, size, mode in [
        ("b/2.png", (50, 70), "RGB"),
        ("a.jpg", (64, 40), "RGB"),
        ("b/1.png", (33, 90), "L"),
        ("c.png", (40, 40), "RGBA"),
        ("d.webp", (32, 32), "RGB"),
    ]:
        pixels = draw.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, len(mode)), dtype=np.uint8).squeeze()
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


ORDER = ["a.jpg", "b/1.png", "b/2.png", "c.png", "d.webp"]


def by_hand(file, kind):
    """Resize, crop and normalise with Pillow and NumPy alone: float64 [3, 32, 32]."""
    image = Image.open(file).convert("RGB")
    if kind == "BitImageProcessor":
        width, height = image.size
        scale = 40 / min(width, height)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 32) // 2, (image.height - 32) // 2
        image = image.crop((left, top, left + 32, top + 32))
    else:
        image = image.resize((32, 32), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    return torch.from_numpy(pixels).permute(2, 0, 1)


@MODELS
def test_rows_are_patches(make, photos, tmp_path):
    """Against the model's own hidden states at pixels prepared by hand; CLS and registers have no rows.

    Planted: CLS kept and the last patch dropped; caught. Planted: files by size; caught."""
    model, processor, hook, special = saved(make, tmp_path)
    cache = harvest_images(model, hook, photos, tmp_path / "rows", processor=processor, batch=2, progress=False)
    assert not model.model.get_submodule(hook)._forward_hooks, "a hook stayed"
    pixels = torch.stack([by_hand(photos / name, make()[2]) for name in ORDER]).float()
    with torch.no_grad():
        states = model.model(pixel_values=pixels, output_hidden_states=True).hidden_states[2]
    want = states[:, special:]
    assert want.shape == (5, 16, 16)
    got = cache.take(torch.arange(len(cache)))
    torch.testing.assert_close(got, want.flatten(0, 1), rtol=1e-3, atol=1e-3)
    assert json.loads((cache.path / "images.json").read_text()) == ORDER
    assert patch_of(cache, 16 * 2 + 4 * 3 + 1) == ("b/2.png", 3, 1)
    assert cache.manifest["special_tokens"] == special
    assert cache.manifest["grid"] == [4, 4]
    cache.verify()


def test_shards_and_interruption(photos, tmp_path):
    """Whole images in a shard; the same bits in whatever shards; a missing shard is made again, and only that."""
    model, processor, hook, _ = saved(vit, tmp_path)
    options = {"processor": processor, "progress": False, "batch": 1}
    whole = harvest_images(model, hook, photos, tmp_path / "a", **options)
    parts = harvest_images(model, hook, photos, tmp_path / "b", shard_rows=32, **options)
    assert parts.manifest["shards"] == [32, 32, 16]
    everything = torch.arange(80)
    assert torch.equal(parts.take(everything), whole.take(everything))
    (tmp_path / "b" / "shard-00001.safetensors").unlink()
    passes = []
    model.model.register_forward_hook(lambda *_: None)
    model.model.get_submodule("embeddings").register_forward_hook(lambda *_: passes.append(1))
    again = harvest_images(model, hook, photos, tmp_path / "b", shard_rows=32, **options)
    assert len(passes) == 3  # the one that finds the sizes, and two images
    assert torch.equal(again.take(everything), whole.take(everything))
    Image.new("RGB", (9, 9)).save(photos / "a.jpg")
    with pytest.raises(ValueError, match=r"holds another harvest \(different dataset_sha256\)"):
        harvest_images(model, hook, photos, tmp_path / "b", shard_rows=32, **options)


def test_half_precision_and_a_list_of_files(photos, tmp_path):
    model, processor, hook, _ = saved(dinov2, tmp_path)
    model.model.to(torch.bfloat16)
    files = [photos / "c.png", photos / "a.jpg"]
    cache = harvest_images(model, hook, files, tmp_path / "rows", processor=processor, dtype="bfloat16", progress=False)
    assert len(cache) == 32
    assert cache.shards[0].dtype == torch.bfloat16
    assert patch_of(cache, 16).file == str(files[1])
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.model.parameters())


def test_a_function_as_processor(photos, tmp_path):
    """Without transformers' processors: what comes out must have one size."""
    model = vit()[0].eval()

    def prepare(images):
        return torch.from_numpy(np.array(images[0].resize((32, 32)))).permute(2, 0, 1)[None] / 255

    cache = harvest_images(model, "layers.0", photos, tmp_path / "rows", processor=prepare, progress=False)
    assert len(cache) == 80
    assert cache.manifest["processor"].endswith("prepare")

    def unequal(images):
        return torch.zeros(1, 3, *images[0].size)

    with pytest.raises(ValueError, match=r"1.png: expected pixels \[1, 3, 64, 40\] from the processor, got \[1, 3, 33"):
        harvest_images(Patches(), "conv", photos, tmp_path / "b", processor=unequal, patch_size=8, progress=False)


class Patches(torch.nn.Module):
    """Any size of image, no config."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten(2), Transposed())

    def forward(self, pixels):
        return self.conv(pixels)


class Transposed(torch.nn.Module):
    def forward(self, x):
        return x.mT


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "deep"])
def test_an_unreadable_image_is_named(photos, tmp_path, damage):
    """Planted: only OSError turned into this; the deep image was not named."""
    model, processor, hook, _ = saved(vit, tmp_path)
    bad = photos / "b" / "2.png"
    data = bad.read_bytes()
    if damage == "deep":
        Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)).save(bad)
    else:
        bad.write_bytes({"truncated": data[: len(data) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"b/2.png: not a readable image \("):
        harvest_images(model, hook, photos, tmp_path / "rows", processor=processor, progress=False)
    with pytest.raises(FileNotFoundError):
        open_cache(tmp_path / "rows")


def test_damaged_png_chunks(photos):
    """A length that lies: Pillow raises SyntaxError, not OSError."""
    file = photos / "c.png"
    data = bytearray(file.read_bytes())
    data[12:16] = b"XXXX"  # not IHDR
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"c.png: not a readable image"):
        open_image(file)


def test_orientation_and_palettes(tmp_path):
    """EXIF says that the camera lay on its side; a palette with transparency becomes RGB."""
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (2, 4)
    palette = Image.new("P", (3, 3))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=b"\x80\xff")
    assert open_image(tmp_path / "palette.png").getpixel((0, 0)) == (255, 0, 0)


def test_bad_arguments(photos, tmp_path):
    model, processor, hook, _ = saved(registers, tmp_path)
    options = {"processor": processor, "progress": False}
    with pytest.raises(ValueError, match=r"hook: expected 17 tokens for 4 x 4 patches, got activations \[1, 21, 16\]"):
        harvest_images(model, hook, photos, tmp_path / "a", special_tokens=1, **options)
    with pytest.raises(
        ValueError, match=r"hook: expected 21 tokens for 4 x 4 patches, got activations \[1, 16, 4, 4\]"
    ):
        harvest_images(model, "embeddings.patch_embeddings.projection", photos, tmp_path / "a", **options)
    with pytest.raises(ValueError, match=r"'layer' is not a hook of this model; for example encoder.layer.0"):
        harvest_images(model, "layer", photos, tmp_path / "a", **options)
    with pytest.raises(ValueError, match="dtype: expected one of"):
        harvest_images(model, hook, photos, tmp_path / "a", dtype="int8", **options)
    with pytest.raises(ValueError, match="images: expected at least one file, got none"):
        harvest_images(model, hook, [], tmp_path / "a", **options)
    with pytest.raises(FileNotFoundError, match="nowhere: no images there"):
        image_files(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"model '.*nowhere' could not be loaded"):
        load_vision_model(str(tmp_path / "nowhere"))
    cache = harvest_images(model, hook, photos, tmp_path / "a", **options)
    with pytest.raises(IndexError, match="row: expected 0 to 79, got 80"):
        patch_of(cache, 80)
    with pytest.raises(ValueError, match="this cache holds no tokens"):
        cache.snippet(0)
