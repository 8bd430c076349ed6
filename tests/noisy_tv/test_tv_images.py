"""Where the pictures come from."""

import os
import sys

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamer_lpm.noisy_tv import NoisyTVError, TVImages, load_images
from dreamer_lpm.noisy_tv.images import LEAST_SPREAD, Collection, spread


@given(height=st.integers(1, 80), width=st.integers(1, 80), seed=st.integers(0, 9))
@settings(deadline=None)
def test_every_source_fills_every_shape(height, width, seed):
    corners = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(1, 2, 2, 3)
    for source in (load_images("static")[0], Collection(corners)):
        picture = source(np.random.default_rng(seed), (height, width, 3))
        assert picture.shape == (height, width, 3)
        assert picture.dtype == np.uint8
    if height > 1 and width > 1:
        np.testing.assert_array_equal(picture[[0, 0, -1, -1], [0, -1, 0, -1]], corners.reshape(4, 3))


def test_a_picture_of_32_is_doubled_pixel_by_pixel():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    doubled = Collection([picture])(np.random.default_rng(0), (64, 64, 3))
    np.testing.assert_array_equal(doubled, picture.repeat(2, axis=0).repeat(2, axis=1))


def test_a_collection_shows_all_its_pictures_alike_often():
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    rng = np.random.default_rng(0)
    counts = np.bincount([Collection(pictures)(rng, (2, 2, 3))[0, 0, 0] for _ in range(5000)])
    assert counts == pytest.approx(np.full(5, 1000), abs=120)


def test_static_is_uniform_over_all_values():
    picture = load_images("static")[0](np.random.default_rng(0), (256, 256, 3))
    counts = np.bincount(picture.ravel(), minlength=256)
    assert counts == pytest.approx(np.full(256, 768), abs=150)


def test_photos_are_a_thousand_lively_distinct_crops_and_need_no_network():
    source, record = load_images("photos")
    assert record == TVImages("photos", "photos", record.count, "photos was asked for by name.")
    assert record.count >= 1000
    crops = source.pictures
    assert crops.shape == (record.count, 32, 32, 3)
    assert crops.dtype == np.uint8
    assert spread(crops).min() >= LEAST_SPREAD
    assert len({crop.tobytes() for crop in crops}) == record.count


def test_crops_are_whole_tiles_of_a_photograph():
    photo = skimage.data.astronaut()
    tiles = np.stack([photo[y : y + 32, x : x + 32] for y in range(0, 512, 32) for x in range(0, 512, 32)])
    lively = {tile.tobytes() for tile in tiles[spread(tiles) >= LEAST_SPREAD]}
    assert len(lively) > 100
    assert lively <= {crop.tobytes() for crop in load_images("photos")[0].pictures}


def test_a_star_on_black_sky_is_not_lively():
    sky, stripes = np.zeros((2, 32, 32, 3), np.uint8)
    sky[10:14, 10:14] = 255
    stripes[::2] = 20
    assert spread(np.stack([sky, stripes])).tolist() == [0, 20]


def test_photos_without_scikit_image_name_the_fix(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoisyTVError, match="pip install scikit-image"):
        load_images("photos")


def test_digits():
    pytest.importorskip("sklearn")
    source, record = load_images("digits")
    assert record.count == 1797
    assert (source.pictures.min(), source.pictures.max()) == (0, 255)


@pytest.mark.parametrize(
    ("source", "module", "fix"),
    [("digits", "sklearn.datasets", "pip install scikit-learn"), ("photos", "PIL.Image", "pip install pillow")],
)
def test_a_missing_package_is_named(monkeypatch, source, module, fix):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NoisyTVError, match=fix):
        load_images(source)


def test_a_folder_of_pictures_of_all_sizes_and_kinds(tmp_path):
    red, grey, clear = np.zeros((40, 50, 3), np.uint8), np.full((8, 8), 77, np.uint8), np.zeros((9, 9, 4), np.uint8)
    red[..., 0] = 255
    for name, picture in (("a.png", red), ("b.PNG", grey), ("c.png", clear)):
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    source, record = load_images(f"folder:{tmp_path}")
    assert record.count == 3
    rng = np.random.default_rng(0)
    colours = {tuple(source(rng, (16, 16, 3))[0, 0].tolist()) for _ in range(50)}
    assert colours == {(255, 0, 0), (77, 77, 77), (0, 0, 0)}


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_an_animation_shows_its_first_picture(tmp_path, kind):
    film = np.full((3, 8, 8, 3), 255, np.uint8) * np.eye(3, dtype=np.uint8)[:, None, None, :]  # red, green, blue
    first, *rest = (Image.fromarray(picture) for picture in film)
    first.save(tmp_path / "film.png", kind, save_all=True, append_images=rest)
    (picture,) = load_images(f"folder:{tmp_path}")[0].pictures
    np.testing.assert_array_equal(picture, film[0])


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path):
    deep = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    picture = load_images(f"folder:{tmp_path}")[0](np.random.default_rng(0), (64, 64, 3))
    np.testing.assert_array_equal(picture, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_fine_detail_of_a_large_picture_is_averaged_and_not_turned_into_static(tmp_path):
    checkers = np.uint8(255) * (np.indices((256, 256)).sum(axis=0) % 2).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "checkers.png")
    picture = load_images(f"folder:{tmp_path}")[0](np.random.default_rng(0), (64, 64, 3))
    assert np.all((picture == 127) | (picture == 128))


def test_folders_that_cannot_serve_name_the_fix(tmp_path):
    with pytest.raises(NoisyTVError, match="there is no folder"):
        load_images(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(NoisyTVError, match=r"holds no pictures: put .png"):
        load_images(f"folder:{tmp_path}")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nonsense")
    with pytest.raises(NoisyTVError, match=r"broken.png is not a picture that can be read .* mend it or take it away"):
        load_images(f"folder:{tmp_path}")


def test_an_unknown_source_lists_the_known():
    with pytest.raises(NoisyTVError, match="use one of auto, cifar10"):
        load_images("imagenet")


def test_no_photo_is_dull() -> None:
    """A level that is no constant of the code: the quarter of a photo's brightest and darkest are 12 apart at least."""
    assert spread(load_images("photos")[0].pictures).min() >= 12


def test_a_file_of_a_strangers_runs_no_program_and_takes_no_gigabytes(tmp_path, monkeypatch):
    """Pillow gives EPS to Ghostscript, whatever the file's suffix."""

    started = []

    def start(*args, **more):
        started.append(args)
        raise OSError("there is none")

    monkeypatch.setattr("subprocess.check_call", start)
    monkeypatch.setattr("subprocess.Popen", start)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(NoisyTVError, match="is not a picture that can be read"):
        load_images(f"folder:{tmp_path}")
    assert not started
    Image.new("1", (8_000, 8_000)).save(picture)
    with pytest.raises(NoisyTVError, match="more than 50,000,000 pixels"):
        load_images(f"folder:{tmp_path}")
    picture.unlink()
    os.mkfifo(picture)
    with pytest.raises(NoisyTVError, match="no regular file"):
        load_images(f"folder:{tmp_path}")
