"""Finding, decoding and pairing images; and what users are told when something is wrong with them."""

from __future__ import annotations

import io
import os
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from passl_densecl import transforms as T
from passl_densecl.data import datasets
from passl_densecl.data.datasets import (
    EXTENSIONS,
    WHY,
    PairDataset,
    UndecodableImage,
    check_decodable,
    decode,
    scan_images,
)
from passl_densecl.data.images import decode_bytes
from passl_densecl.data.labeled import LabeledDataset
from passl_densecl.data.packing import pack_images
from passl_densecl.data.signatures import looks_like_image
from passl_densecl.errors import InputError, RunError
from tests.data.damaged import tiff
from tests.reference.cases import FOLDER as REFERENCE


def picture(seed: int = 0, height: int = 40, width: int = 56) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path | str, seed: int = 0, **options) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(picture(seed)).save(path, **options)


def write_all(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write(root / name, seed)
    return root


def paths(image_set, root) -> list[str]:
    return [os.path.relpath(image_set.path(index), root) for index in range(len(image_set))]


def refused(*words: str):
    """The error for users, with every one of these words in its message."""
    return pytest.raises(InputError, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


# --- any folder ----------------------------------------------------------------------------------------------------


def test_finds_every_image_of_any_layout_in_a_fixed_order(tmp_path):
    write_all(tmp_path, "b.jpg", "a/deep/er/x.PNG", "a/y.JPEG", "with blank/ä #1.bmp", "c.webp", "z.tiff")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._y.JPEG").write_bytes(b"left by macOS")
    found = scan_images(tmp_path)
    assert paths(found, tmp_path) == ["a/deep/er/x.PNG", "a/y.JPEG", "b.jpg", "c.webp", "with blank/ä #1.bmp", "z.tiff"]
    assert found.labels is None
    assert found.classes == ()
    assert (
        found.describe()
        == f"6 images under {tmp_path} (2 jpg, 1 bmp, 1 png, 1 tif, 1 webp); left out: 1 .txt, 1 hidden name"
    )


def test_what_is_left_out_is_counted_and_can_be_asked_for(tmp_path):
    names = ["a.jpg", "b.jfif", "c.jpg_large", "d.JPEG-orig", "e.pjpeg", "f.apng"]
    write_all(tmp_path, "x/a.jpg")
    jpeg = (tmp_path / "x" / "a.jpg").read_bytes()
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    files = dict.fromkeys([*names[1:], "noending", "g.jpg?w=300", "y/h.photo"], jpeg)
    files |= {
        "k.heic": heic,
        "notes.txt": b"BM and P6 and II* are words",
        ".hidden.jpg": jpeg,
        "Thumbs.db": b"\xff\xd8 no",
    }
    files |= {f"{folder}/thumb.jpg": jpeg for folder in ("@eaDir", "y/@eaDir", "#recycle", "__MACOSX/x", "lost+found")}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.fifo")  # to open it would wait for ever
    found = scan_images(tmp_path)
    assert {os.path.basename(path) for path in paths(found, tmp_path)} == set(names)
    line = found.describe()
    assert "6 images" in line
    assert "(5 jpg, 1 png)" in line
    assert (
        "left out: 1 .db, 1 .fifo, 1 .heic, 1 .jpg?w=300, 3 others, 1 hidden name, 1 folder #recycle, 2 folders "
        "@eaDir, 1 folder __MACOSX, 1 folder lost+found" in line
    )
    assert "files with no ending, .jpg?w=300, .photo look like images: extensions: any takes them" in line
    found = scan_images(tmp_path, extensions="any")
    assert len(found) == 9
    assert "left out: 1 .db, 1 .fifo, 1 .heic, 1 .txt, 1 hidden name," in found.describe()
    assert all(found.decode(index).shape == (40, 56, 3) for index in range(9))
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "noending").write_bytes(jpeg)
    with refused("no images under", "images by their first bytes: set extensions: any"):
        scan_images(tmp_path / "only")
    assert len(scan_images(tmp_path / "only", extensions="any")) == 1
    (tmp_path / "only" / "noending").write_bytes(heic)
    (tmp_path / "only" / "noending").rename(tmp_path / "only" / "a.HEIC")
    with refused("1 .heic", "convert it to JPEG"):
        scan_images(tmp_path / "only", extensions="any")


def test_system_folders_are_no_classes(tmp_path):
    write_all(tmp_path, "cat/a.png", "dog/b.png", "@eaDir/c.png", "cat/@eaDir/d.png")
    found = scan_images(tmp_path, labeled=True)
    assert (found.classes, len(found)) == (("cat", "dog"), 2)
    assert "left out: 2 folders @eaDir" in found.describe()


@pytest.mark.parametrize("start", ["jpeg", "png", "webp", "bmp", "tiff", "ppm", "gif"])
def test_first_bytes_of_images(start):
    data = files()[start][0]
    assert looks_like_image(data[:32])
    assert not looks_like_image(b"\n" + data[:31])


def test_the_order_does_not_depend_on_the_order_of_writing(tmp_path):
    names = [f"{folder}/{number}.png" for folder in "cab" for number in (3, 1, 2)]
    first = write_all(tmp_path / "one", *names)
    second = write_all(tmp_path / "two", *reversed(names))
    assert paths(scan_images(first), first) == paths(scan_images(second), second) == sorted(names)


def test_follows_links_but_not_in_circles(tmp_path):
    write_all(tmp_path, "real/a.png", "elsewhere/b.png")
    root = tmp_path / "real"
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root)
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "real")
    (root / "c.png").symlink_to(root / "a.png")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    found = scan_images(root)
    assert paths(found, root) == ["a.png", "c.png", "linked/b.png"]
    assert found.describe().endswith("(3 png); 1 link to missing files left out")


def test_says_that_train_and_val_count_together(tmp_path):
    write_all(tmp_path, "train/a.png", "val/b.png", "other/c.png")
    assert "the folders 'train', 'val' count together" in scan_images(tmp_path).describe()
    assert "together" not in scan_images(tmp_path / "train").describe()


def test_reads_names_that_are_no_utf8(tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(name, "wb") as file:
        Image.fromarray(picture(3)).save(file, "png")
    found = scan_images(tmp_path)
    assert os.fsencode(found.path(0)) == name
    assert (decode(found.path(0)) == picture(3)).all()
    found.describe().encode("utf-8")
    with open(name, "wb") as file:
        file.write(b"broken")
    with refused("caf", "e9.png") as caught:
        decode(found.path(0))
    str(caught.value).encode("utf-8")


def test_stays_small_in_memory(tmp_path):
    write_all(tmp_path, *[f"{number:03d}.png" for number in range(50)])
    found = scan_images(tmp_path)
    assert len(pickle.dumps(found)) < 50 * (len("000.png") + 8) + 1000
    with pytest.raises(IndexError):
        found.path(50)
    with pytest.raises(IndexError):
        found.path(-1)


# --- class folders -------------------------------------------------------------------------------------------------


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path):
    write_all(tmp_path, "dog/2.png", "cat/deep/1.png", "cat/0.png", "ant/9.png")
    found = scan_images(tmp_path, labeled=True)
    assert found.classes == ("ant", "cat", "dog")
    assert paths(found, tmp_path) == ["ant/9.png", "cat/0.png", "cat/deep/1.png", "dog/2.png"]
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [0, 1, 1, 2]
    assert found.describe() == f"4 images in 3 classes under {tmp_path} (4 png)"


def test_a_subset_keeps_labels_and_the_order_asked_for(tmp_path):
    write_all(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "eel/1.png")
    whole = scan_images(tmp_path, labeled=True)
    part = whole.subset([3, 0, 4])
    assert paths(part, tmp_path) == ["dog/2.png", "cat/1.png", "eel/1.png"]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0, 2]
    assert part.classes == ("cat", "dog", "eel")
    assert (part.decode(1) == whole.decode(0)).all()
    with pytest.raises(IndexError):
        part.read(3)


def test_a_validation_folder_is_numbered_by_the_training_classes(tmp_path):
    write_all(tmp_path, "dog/2.png", "ant/9.png")
    found = scan_images(tmp_path, labeled=True, classes=("dog", "cat", "ant"))
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0]
    assert "in 2 of 3 classes" in found.describe()
    with refused("'ant'", "'cat'", "'dogs'", "did you mean"):
        scan_images(tmp_path, labeled=True, classes=("cat", "dogs", "ants"))


def test_labeled_folders_that_are_not_class_folders(tmp_path):
    write_all(tmp_path / "flat", "a.png", "b.png", "cat/c.png")
    with refused("2 images", "a.png", "directly in", "list_file"):
        scan_images(tmp_path / "flat", labeled=True)
    write_all(tmp_path / "splits", "train/cat/a.png", "val/cat/b.png")
    with refused("'train', 'val'", str(tmp_path / "splits" / "train")):
        scan_images(tmp_path / "splits", labeled=True)
    write_all(tmp_path / "hollow", "cat/a.png")
    (tmp_path / "hollow" / "dog").mkdir()
    with refused("'dog'", "no image"):
        scan_images(tmp_path / "hollow", labeled=True)


# --- list files ----------------------------------------------------------------------------------------------------


def test_list_file(tmp_path):
    write_all(tmp_path / "photos", "b.png", "a c/d e.png", "not listed.png")
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbf# comment\n\n b.png \r\na c/d e.png\nb.png\n")
    found = scan_images(tmp_path / "photos", listing)
    assert paths(found, tmp_path / "photos") == ["b.png", "a c/d e.png", "b.png"]
    assert found.describe() == f"3 images listed in {listing} (3 png)"


def test_list_file_takes_absolute_paths(tmp_path):
    write_all(tmp_path, "photos/a.png", "other/b.png")
    (tmp_path / "list.txt").write_text(f"a.png\n{tmp_path}/other/b.png\n")
    assert scan_images(tmp_path / "photos", tmp_path / "list.txt").path(1) == f"{tmp_path}/other/b.png"


def test_labeled_list_file_with_numbers_and_with_names(tmp_path):
    write_all(tmp_path, "b.png", "a c/d e.png")
    listing = tmp_path / "list.txt"
    listing.write_text("a c/d e.png 2\nb.png\t0\n")
    found = scan_images(tmp_path, listing, labeled=True)
    assert found.labels is not None
    assert (found.labels.tolist(), found.classes) == ([2, 0], ("0", "1", "2"))
    found = scan_images(tmp_path, listing, labeled=True, classes=("x", "y", "z"))
    assert found.labels is not None
    assert (found.labels.tolist(), found.classes) == ([2, 0], ("x", "y", "z"))
    listing.write_text("a c/d e.png dog\nb.png cat\n")
    found = scan_images(tmp_path, listing, labeled=True)
    assert found.labels is not None
    assert (found.labels.tolist(), found.classes) == ([1, 0], ("cat", "dog"))


def test_list_file_mistakes_name_file_and_line(tmp_path):
    write_all(tmp_path, "a.png")
    listing = tmp_path / "list.txt"
    listing.write_text("# first\na.png\nb.png\n")
    with refused(f"{listing}:3", "'b.png'", str(tmp_path)):
        scan_images(tmp_path, listing)
    listing.write_text("a.png 0\n")
    with refused(f"{listing}:1", "label"):
        scan_images(tmp_path, listing)
    listing.write_text("a.png 0\na.png\n")
    with refused(f"{listing}:2", "path label"):
        scan_images(tmp_path, listing, labeled=True)
    listing.write_text("a.png 0\na.png 3\n")
    with refused(f"{listing}:2", "'3'", "0 to 1", "'cat', 'dog'"):
        scan_images(tmp_path, listing, labeled=True, classes=("cat", "dog"))
    listing.write_text("a.png cta\n")
    with refused(f"{listing}:1", "'cta'", "did you mean 'cat'?"):
        scan_images(tmp_path, listing, labeled=True, classes=("cat", "dog"))
    listing.write_text("a.png 5000000\n")
    with refused(f"{listing}:1", "5000000"):
        scan_images(tmp_path, listing, labeled=True)
    listing.write_text("# nothing\n")
    with refused(str(listing), "no image"):
        scan_images(tmp_path, listing)
    with refused("missing.txt", "No such file"):
        scan_images(tmp_path, tmp_path / "missing.txt")


# --- empty, missing, too few ---------------------------------------------------------------------------------------


def test_missing_folder(tmp_path, monkeypatch):
    write_all(tmp_path, "photos/a.png")
    monkeypatch.chdir(tmp_path)
    with refused("no folder 'photo'", "did you mean 'photos'?"):
        scan_images("photo")
    with refused("did you mean 'photos/train'?"):
        os.makedirs("photos/train")
        scan_images("photos/trian")
    with refused(f"did you mean '{tmp_path}/photos/train'?"):
        scan_images(f"{tmp_path}/potos/train")
    with refused("no folder 'qqqq'", "give the folder"):
        scan_images("qqqq")
    with refused("a.png", "is a file", "list_file"):
        scan_images("photos/a.png")
    with refused("empty text"):
        scan_images("")


def test_folder_without_images_says_what_it_holds(tmp_path):
    for labeled in (False, True):
        folder = tmp_path / f"empty{labeled}"
        folder.mkdir()
        with refused(str(folder), "nothing at all"):
            scan_images(folder, labeled=labeled)
        for name in ("a.txt", "b.txt", "c.csv", "noending"):
            (folder / name).write_text("")
        with refused("2 .txt, 1 .csv, 1 extensionless files", "jpg"):
            scan_images(folder, labeled=labeled)
    (tmp_path / "split" / "train").mkdir(parents=True)
    (tmp_path / "split" / "val").mkdir()
    (tmp_path / "split" / "train.zip").write_text("")
    with refused("the folders 'train', 'val'", "1 .zip file", "unpack"):
        scan_images(tmp_path / "split")


def test_unreadable_folder(tmp_path, monkeypatch):
    write_all(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def refuse(path):
        if os.fsdecode(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with refused("locked", "Permission denied"):
        scan_images(tmp_path)


# --- pixels --------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sixteen_bits() -> bytes:
    return cv2.imencode(".png", picture().astype(np.uint16)[..., ::-1] * 257)[1].tobytes()


def files() -> dict[str, tuple[bytes, float]]:
    """Files of every kind, and how far their pixels may be from Pillow's."""
    image = Image.fromarray(picture())
    alpha = Image.fromarray(np.dstack([picture(), np.full((40, 56), 77, np.uint8)]))
    sideways = Image.Exif()
    sideways[0x112] = 6
    known = {
        "jpeg": (encoded(image, "JPEG"), 0.5),
        "progressive jpeg": (encoded(image, "JPEG", progressive=True), 0.5),
        "gray jpeg": (encoded(image.convert("L"), "JPEG"), 0.5),
        "cmyk jpeg": (encoded(image.convert("CMYK"), "JPEG", quality=95), 1.5),
        "turned jpeg": (encoded(image, "JPEG", exif=sideways), 0.5),
        "png": (encoded(image, "PNG"), 0),
        "palette png": (encoded(image.convert("P"), "PNG"), 0),
        "two-color png": (encoded(image.convert("1"), "PNG"), 0),
        "gray png": (encoded(image.convert("L"), "PNG"), 0),
        "gray png with alpha": (encoded(image.convert("LA"), "PNG"), 0),
        "png with alpha": (encoded(alpha, "PNG"), 0),
        "transparent palette png": (encoded(image.convert("P"), "PNG", transparency=3), 0),
        "webp": (encoded(image, "WEBP", lossless=True), 0),
        "webp with alpha": (encoded(alpha, "WEBP", lossless=True, exact=True), 0),
        "bmp": (encoded(image, "BMP"), 0),
        "tiff": (encoded(image, "TIFF"), 0),
        "ppm": (encoded(image, "PPM"), 0),
    }
    if "gif" in EXTENSIONS:
        known["gif"] = (encoded(image, "GIF"), 0)
    return known


@pytest.mark.parametrize("kind", files())
def test_decode_equals_pillow(tmp_path, kind):
    data, most = files()[kind]
    (tmp_path / "file").write_bytes(data)
    image = decode(str(tmp_path / "file"))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert image.shape == expected.shape
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).mean() <= most
    assert image.flags.writeable
    assert image.flags.c_contiguous


def test_decode_sixteen_bits(tmp_path):
    (tmp_path / "file").write_bytes(sixteen_bits())
    assert (decode(str(tmp_path / "file")) == picture()).all()


def test_sixteen_bits_that_use_twelve(tmp_path):
    """A microscope's picture: 4,095 of 65,535 at most. All kinds of files, the transforms' way, and packs too."""
    deep = picture(0, 100, 140).astype(np.uint16) * 16
    for name, pixels in {
        "a.png": deep,
        "b.png": deep[..., 0],
        "c.tif": deep,
        "d.pgm": deep[..., 0],
        "e.ppm": deep,
    }.items():
        order = pixels[..., ::-1] if pixels.ndim == 3 else pixels
        cv2.imencode(os.path.splitext(name)[1], order)[1].tofile(tmp_path / name)
    write(tmp_path / "f.png", 1)
    dark, bright = scan_images(tmp_path), scan_images(tmp_path, sixteen_bit="stretch")
    top = int(deep.max())
    assert (
        f"5 of 6 files looked at have 16 bits a value: the upper 8 count, so the brightest value {top:,}"
        in dark.describe()
    )
    assert f"becomes {top >> 8}; sixteen_bit: stretch would make it 255" in dark.describe()
    assert "each image's darkest to brightest value becomes 0 to 255 (sixteen_bit: stretch)" in bright.describe()
    for index, pixels in enumerate([deep, deep[..., :1], deep, deep[..., :1], deep]):
        wanted = np.broadcast_to(pixels, deep.shape).astype(float)
        assert np.abs(dark.decode(index) - wanted / 256).max() <= 1
        low = wanted.min()
        assert np.abs(bright.decode(index) - (wanted - low) * 255 / (wanted.max() - low)).max() <= 1
        views = PairDataset(bright.subset([5, index]), (), seed=0)[0, 1][0]
        assert (views == bright.decode(index)).all()
    assert (bright.decode(5) == picture(1)).all()  # 8 bits stay as they are
    assert "16 bits" not in scan_images(write_all(tmp_path / "eight", "a.png", "b.tif", "c.jpg")).describe()
    pytest.importorskip("lmdb")
    pack_images(bright, str(tmp_path / "pack.lmdb"), shorter_side=50, quality=100)
    packed = scan_images(tmp_path / "pack.lmdb")
    assert (packed.decode(2).max(), packed.decode(2).min()) > (250, -1)
    assert packed.decode(2).mean() > 90


SOMETHING_ELSE = {  # what is said of it → the file
    "a Git LFS pointer in place of the image: fetch it with git lfs pull": b"version https://git-lfs.github.com/spec/v1\n",
    "HEIC, which OpenCV does not decode: convert it to JPEG": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
    "a web page, no image: download it again": b"\n<!DOCTYPE html><html>404</html>",
    "an SVG drawing: convert it to PNG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a PDF document: convert its pages to PNG": b"%PDF-1.7\n",
    "a Photoshop file: save it as PNG or TIFF": b"8BPS\0\1" + bytes(99),
    "JPEG XL, which OpenCV does not decode: convert it to JPEG": b"\0\0\0\x0cJXL \r\n\x87\n",
    "TIFF of 1 band of 32-bit floating-point numbers: write 1 or 3": tiff(np.ones((6, 5, 1), "f4")),
    "TIFF of 3 bands of 64-bit floating-point numbers": tiff(np.ones((6, 5, 3), "f8")),
    "TIFF of 8 bands of 16-bit numbers": tiff(np.ones((6, 5, 8), "u2")),
    "TIFF of 3 bands of 32-bit numbers": tiff(np.ones((6, 5, 3), "u4")),
    "damaged, cut short or no image": tiff(np.ones((90, 50, 3), "u1"))[:500],
}


@pytest.mark.parametrize("words", SOMETHING_ELSE)
def test_a_file_that_is_something_else_is_named(tmp_path, words):
    data = SOMETHING_ELSE[words]
    for sixteen_bit in ("high_byte", "stretch"):
        with pytest.raises(UndecodableImage, match=re.escape(words) + r".*\(.*bytes") as caught:
            decode_bytes(data, "it", sixteen_bit)
        assert len(caught.value.reason.encode()) < WHY.itemsize


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"hello, I am no image" * 20, "no image (400 bytes"),
        (files()["jpeg"][0][:-40], "cut short"),
        (files()["png"][0][:600], "cut short"),
        (files()["webp"][0][:300], "cut short"),
        (b"\xff\xd8\xff\xe0" + bytes(300), "damaged"),
    ],
)
def test_undecodable_files_are_named_with_a_reason(tmp_path, data, words):
    path = str(tmp_path / "bad.jpg")
    Path(path).write_bytes(data)
    with pytest.raises(UndecodableImage, match=re.escape(words)) as caught:
        decode(path)
    assert caught.value.path == path
    assert path in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.reason) == (UndecodableImage, str(caught.value), caught.value.reason)


def test_decode_missing_file(tmp_path):
    with refused("gone.jpg", "No such file"):
        decode(str(tmp_path / "gone.jpg"))


def test_check_decodable(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"not an image")
    found = scan_images(tmp_path)
    with refused(str(tmp_path), "tried 16 of 40", "00.jpg", "no image (12 bytes"):
        check_decodable(found)
    write(tmp_path / "39.jpg")
    check_decodable(found)  # one of the sample is enough
    with refused("tried 1 of 40"):
        check_decodable(found, sample=1)


# --- data sets -----------------------------------------------------------------------------------------------------

RECIPE = (T.RandomResizedCrop(size=24), T.ColorJitter(), T.GaussianBlur(), T.RandomHorizontalFlip())


@pytest.fixture
def six(tmp_path):
    return scan_images(write_all(tmp_path / "six", *[f"{number}.png" for number in range(6)]))


def test_pairs_come_from_seed_epoch_index_and_view(six):
    data = PairDataset(six, RECIPE, seed=4)
    query, key, index, why = data[2, 3]
    assert len(data) == 6
    assert query.shape == key.shape == (24, 24, 3)
    assert query.dtype == key.dtype == np.uint8
    assert (index, why.item()) == (3, b"")
    assert (index.dtype, why.dtype) == (np.int64, WHY)
    for view, image in enumerate((query, key)):
        expected = T.apply(RECIPE, decode(six.path(3)), np.random.default_rng([4, 2, 3, view]))
        assert (image == expected).all()
    data[0, 1]
    assert (data[2, 3][0] == query).all()  # whatever was asked for in between
    assert (data[2, 3][1] == key).all()
    assert (query != key).any()
    others = [data[1, 3][0], data[2, 4][0], PairDataset(six, RECIPE, seed=5)[2, 3][0]]
    assert all((other != query).any() for other in others)


def test_views_without_augmentation_are_the_image(six):
    query, key, _, _ = PairDataset(six, (), seed=0)[0, 2]
    assert (query == picture(2)).all()
    assert (key == picture(2)).all()


def test_labeled_samples(tmp_path, six):
    root = write_all(tmp_path / "labeled", "cat/0.png", "dog/1.png")
    data = LabeledDataset(scan_images(root, labeled=True), (T.CenterCrop(size=32),), seed=0)
    image, label, index, why = data[0, 1]
    assert (image == T.center_crop(picture(1), 32)).all()
    assert (label, index, why.item()) == (1, 1, b"")
    assert label.dtype == np.int64
    assert LabeledDataset(six, (), seed=0)[0, 1][1] == -1  # no labels


def test_an_undecodable_image_is_replaced(tmp_path, six):
    """By the one that 5, the step of 6 images (coprime, near 0.618 of them), leads to."""
    before = PairDataset(six, (), seed=0)[0, 4]
    for number in (1, 2, 5):
        Path(six.path(number)).write_bytes(b"broken")
    data = PairDataset(six, (), seed=0)
    for asked, used in ((1, 0), (2, 0), (5, 4)):
        query, key, index, why = data[0, asked]
        assert (query == picture(used)).all()
        assert (key == picture(used)).all()
        assert index == asked
        assert why.item() == b"damaged, cut short or no image (6 bytes, first b'brok')"
    assert all((one == other).all() for one, other in zip(before, data[0, 4], strict=True))

    root = write_all(tmp_path / "labeled", "cat/0.png", "dog/1.png")
    (root / "cat" / "0.png").write_bytes(b"")
    image, label, index, why = LabeledDataset(scan_images(root, labeled=True), (), seed=0)[0, 0]
    assert (image == picture(1)).all()  # the label goes with the pixels
    assert (label, index, why.item()) == (1, 0, b"the file is empty (0 bytes)")


def test_a_stand_in_has_the_draws_of_the_image_that_it_stands_for(six):
    Path(six.path(1)).write_bytes(b"")
    query, key, _, _ = PairDataset(six, RECIPE, seed=4)[2, 1]
    for view, image in enumerate((query, key)):
        assert (image == T.apply(RECIPE, picture(0), np.random.default_rng([4, 2, 1, view]))).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 30, 100, 4096, 1_281_167])
def test_stand_ins_are_different_and_far_apart(count):
    found = [list(datasets._stand_ins(index, count)) for index in (0, 1, count - 1)]
    for index, tried in zip((0, 1, count - 1), found, strict=True):
        assert tried[0] == index % count
        assert len(set(tried)) == len(tried) == min(20, count)
    if count > 1000:
        ordered = np.sort(found[0])
        assert np.diff(ordered).min() > count / 50


def test_a_folder_of_bad_files_side_by_side_is_no_end(tmp_path):
    """40 downloads in a row that failed, and each has a stand-in of its own."""
    for number in range(200):
        write(tmp_path / f"{number:03d}.png", number)
    for number in range(80, 120):
        (tmp_path / f"{number:03d}.png").write_bytes(b"")
    data = PairDataset(scan_images(tmp_path), (), seed=0)
    taken = [data[0, index][0].tobytes() for index in range(80, 120)]
    assert len(set(taken)) == 40


def test_when_nothing_decodes_the_search_ends(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02d}.png").write_bytes(b"broken")
    with pytest.raises(RunError, match=r"07\.png.*19 others in its place.*densecl data check"):
        PairDataset(scan_images(tmp_path), (), seed=0)[0, 7]
    last = list(datasets._stand_ins(7, 30))[-1]
    write(tmp_path / f"{last:02d}.png", 1)
    assert (PairDataset(scan_images(tmp_path), (), seed=0)[0, 7][0] == picture(1)).all()  # the 20th try


def test_real_photographs_decode_as_in_pillow():
    for name in ("0.jpg", "1.jpg"):
        path = str(REFERENCE / "augment" / name)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        image = decode(path)
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).mean() < 1
