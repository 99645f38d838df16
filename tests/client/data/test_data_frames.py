"""Files that hold several pictures: said with counts, or refused; never silent."""

import pytest
from PIL import Image, TiffImagePlugin

from dpfpl_client.data import DataSettings, read_pool
from dpfpl_client.data.decode import PixelRules, UnreadableImageError, decode_image, decode_picture
from dpfpl_common.errors import ConfigError

SAVED = {
    "stack.tif": {},
    "film.gif": {"duration": 10},
    "film.webp": {"duration": 10, "lossless": True},
    "film.png": {"duration": 10},
}


@pytest.fixture
def several(picture):
    """several(path, count, first): write a file of so many pictures."""

    def write(path, count=3, first=900):
        first, *others = [picture(first + number, (20, 16)) for number in range(count)]
        first.save(path, save_all=True, append_images=others, **SAVED.get(path.name, {}))
        return path

    return write


@pytest.fixture
def films(tmp_path, fill, several):
    """Two classes of six images, and four files of several pictures."""
    fill(tmp_path / "cat", 0, 6)
    fill(tmp_path / "dog", 50, 6)
    for number, name in enumerate(SAVED):
        several(tmp_path / ("cat" if number % 2 else "dog") / name, 3, 900 + 10 * number)
    return tmp_path


@pytest.mark.parametrize("name", SAVED)
def test_frames_are_counted_and_the_first_is_taken(several, tmp_path, picture, name):
    found = decode_picture(several(tmp_path / name))
    assert found.frames == 3
    if not name.endswith("gif"):  # whose palette has 256 colours
        assert found.image.tobytes() == picture(900, (20, 16)).tobytes()


@pytest.mark.parametrize("name", SAVED)
def test_a_site_may_refuse_such_files(several, tmp_path, name):
    with pytest.raises(UnreadableImageError, match="several pictures") as raised:
        decode_image(several(tmp_path / name), PixelRules(frames="refuse"))
    assert raised.value.code == "SEVERAL_FRAMES"
    assert 'frames = "first"' in raised.value.advice


@pytest.mark.parametrize("name", SAVED)
def test_a_file_of_one_picture_is_none_of_them(several, tmp_path, name):
    assert decode_picture(several(tmp_path / name, 1), PixelRules(frames="refuse")).frames == 1


def test_the_data_set_says_how_many_and_of_which_kind(films):
    (problem,) = read_pool(DataSettings("folder", str(films), test_fraction=0)).problems
    assert (problem.code, problem.severity) == ("SEVERAL_FRAMES", "warning")
    for text in ("4 of 16 files", "1 .gif, 1 .png, 1 .tif, 1 .webp", "12 pictures", "'dog/stack.tif'", '"refuse"'):
        assert text in problem.message


def test_refused_files_are_left_out_and_named(films):
    pool = read_pool(DataSettings("folder", str(films), frames="refuse"))
    assert len(pool.records) == 12
    assert {problem.code for problem in pool.problems} == {"SEVERAL_FRAMES"}
    assert set(pool.unreadable) == {"dog/stack.tif", "cat/film.gif", "dog/film.webp", "cat/film.png"}


def test_a_tiffs_preview_is_no_second_picture(tmp_path, picture):
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "x.tif")) as file:
        for image, kind in ((picture(1, (20, 16)), 0), (picture(1, (10, 8)), 1)):
            image.save(file, format="TIFF", tiffinfo={254: kind})
            file.newFrame()
    assert decode_picture(tmp_path / "x.tif").frames == 1


def test_a_second_view_in_a_jpeg_is_part_of_its_picture(tmp_path, picture):
    picture(1).save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[picture(2)])
    assert decode_picture(tmp_path / "x.jpg", PixelRules(frames="refuse")).frames == 1


def test_a_film_that_is_cut_off_after_its_first_picture_is_still_several(several, tmp_path):
    whole = several(tmp_path / "film.gif").read_bytes()
    cut = whole[: len(whole) - 200]
    assert decode_picture(cut).frames > 1
    with pytest.raises(UnreadableImageError):
        decode_picture(cut, PixelRules(frames="refuse"))


def test_turned_by_exif_as_well_as_one_of_several(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 3
    first = picture(1, (20, 16))
    first.save(tmp_path / "film.png", save_all=True, append_images=[picture(2, (20, 16))], exif=exif)
    found = decode_picture(tmp_path / "film.png")
    assert found.frames == 2
    assert found.image.tobytes() == first.transpose(Image.Transpose.ROTATE_180).tobytes()


def test_another_word_for_frames_is_refused():
    with pytest.raises(ConfigError, match="frames is"):
        DataSettings("digits", frames="all")
