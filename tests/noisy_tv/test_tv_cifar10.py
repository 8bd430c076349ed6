"""CIFAR-10 over a wire that may fail in every way: small archives in the true format, served on this machine."""

import contextlib
import hashlib
import io
import pickle
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dreamer_lpm.noisy_tv import NoisyTVError, load_images
from dreamer_lpm.noisy_tv.cifar10 import ARCHIVE_NAME, OFFICIAL, RECORD, Archive, read_archive
from dreamer_lpm.noisy_tv.images import Collection

TIMEOUT = 0.8  # seconds
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def records(pictures: np.ndarray, label: int = 3) -> bytes:
    """Each: a label, then the red, the green and the blue plane."""
    return b"".join(bytes([label]) + picture.transpose(2, 0, 1).tobytes() for picture in pictures)


def file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def link(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


ROOT = "cifar-10-batches-bin"
SECOND = file(f"{ROOT}/data_batch_2.bin", records(PICTURES[4:]))
FIRST = file(f"{ROOT}/data_batch_1.bin", records(PICTURES[:4]))
REST = [
    file(f"{ROOT}/batches.meta.txt", b"airplane\n"),
    file(f"{ROOT}/test_batch.bin", records(255 - PICTURES)),
    file(f"{ROOT}/readme.html", b"<html></html>"),
]
TRUE = packed(*REST, SECOND, FIRST)


class Site:
    """What the server sends: ``body`` in ``pieces`` with a ``pause`` before each, after promising ``length`` bytes."""

    def __init__(self) -> None:
        self.body, self.status, self.kind = TRUE, 200, "application/gzip"
        self.pieces, self.pause, self.length = 1, 0.0, -1
        self.downloads = 0
        self.url = ""

    def archive(self, truth: bytes = TRUE) -> Archive:
        return Archive(self.url, hashlib.sha256(truth).hexdigest(), len(truth))


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(site.status)
            self.send_header("Content-Type", site.kind)
            self.send_header("Content-Length", str(len(site.body) if site.length < 0 else site.length))
            self.end_headers()

        def do_GET(self) -> None:
            site.downloads += 1
            self.do_HEAD()
            size = -(-len(site.body) // site.pieces)
            with contextlib.suppress(ConnectionError):  # the client may hang up on us
                for start in range(0, len(site.body), size):
                    time.sleep(site.pause)
                    self.wfile.write(site.body[start : start + size])

        def log_message(self, *args: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        site.url = f"http://127.0.0.1:{server.server_port}/{ARCHIVE_NAME}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def load(folder: Path, archive: Archive, source: str = "cifar10"):
    return load_images(source, folder, timeout=TIMEOUT, archive=archive)


def assert_not_to_be_had(folder: Path, archive: Archive, why: str) -> None:
    """By name it is an error that names the fix, "auto" says why it shows photographs, and no half file stays."""
    start = time.monotonic()
    with pytest.raises(NoisyTVError, match=rf"CIFAR-10 is not to be had: .*{why}.*; to get it, go online or put http"):
        load(folder, archive)
    assert time.monotonic() - start < 5 * TIMEOUT
    _, record = load(folder, archive, "auto")
    assert (record.requested, record.used) == ("auto", "photos")
    assert record.count >= 1000
    assert why.replace("\\", "") in record.reason
    assert not list(folder.glob("*.npy"))
    assert not list(folder.glob("*tmp*"))


def test_the_official_archive_is_the_binary_one():
    assert OFFICIAL.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert OFFICIAL.size == 170_052_171
    assert OFFICIAL.sha256 == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


@pytest.mark.parametrize("source", ["cifar10", "auto"])
def test_the_training_pictures_arrive_pixel_for_pixel(tmp_path, site, source):
    images, record = load(tmp_path / "new" / "folder", site.archive(), source)
    np.testing.assert_array_equal(images.pictures, PICTURES)
    assert (record.requested, record.used, record.count) == (source, "cifar10", 6)
    assert record.reason == f"CIFAR-10 was downloaded from {site.url}."
    picture = images(np.random.default_rng(0), (64, 64, 3))
    assert any(np.array_equal(picture[::2, ::2], original) for original in PICTURES)


def test_the_cache_spares_the_network(tmp_path, site):
    archive = site.archive()
    load(tmp_path, archive)
    site.status = 500
    images, record = load(tmp_path, archive, "auto")
    np.testing.assert_array_equal(images.pictures, PICTURES)
    assert "was found in" in record.reason
    assert site.downloads == 1


def test_an_archive_put_there_by_hand_spares_the_network(tmp_path, site):
    (tmp_path / ARCHIVE_NAME).write_bytes(TRUE)
    images, record = load(tmp_path, site.archive(), "auto")
    np.testing.assert_array_equal(images.pictures, PICTURES)
    assert "was read from" in record.reason
    assert site.downloads == 0


def test_half_an_archive_put_there_is_fetched_anew(tmp_path, site):
    (tmp_path / ARCHIVE_NAME).write_bytes(TRUE[:100])
    np.testing.assert_array_equal(load(tmp_path, site.archive())[0].pictures, PICTURES)
    assert site.downloads == 1


def several(good: bytes) -> bytes:
    file = io.BytesIO()
    np.savez(file, PICTURES, PICTURES)
    return file.getvalue()


@pytest.mark.parametrize("spoil", [lambda good: good[:-9], lambda good: b"", lambda good: b"not numpy", several])
def test_a_damaged_cache_is_made_anew(tmp_path, site, spoil):
    load(tmp_path, site.archive())
    (cache,) = tmp_path.glob("*.npy")
    cache.write_bytes(spoil(cache.read_bytes()))
    np.testing.assert_array_equal(load(tmp_path, site.archive())[0].pictures, PICTURES)
    assert cache.stat().st_size > PICTURES.size


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return pytest.fail, ("a cache was unpickled",)


def test_nothing_is_ever_unpickled(tmp_path, site):
    load(tmp_path, site.archive())
    (cache,) = tmp_path.glob("*.npy")
    np.save(cache, np.array([Bomb()], object), allow_pickle=True)
    np.testing.assert_array_equal(load(tmp_path, site.archive())[0].pictures, PICTURES)


def test_archives_do_not_take_each_others_cache(tmp_path, site):
    load(tmp_path, site.archive())
    site.body = packed(file("data_batch_1.bin", records(255 - PICTURES)))
    np.testing.assert_array_equal(load(tmp_path, site.archive(site.body))[0].pictures, 255 - PICTURES)


def test_an_interrupted_cache_is_no_cache(tmp_path, site, monkeypatch):
    def full_disk(stream, pictures, allow_pickle):
        stream.write(b"\x93NUMPY half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full_disk)
        np.testing.assert_array_equal(load(tmp_path, site.archive())[0].pictures, PICTURES)
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE_NAME]
    np.testing.assert_array_equal(load(tmp_path, site.archive())[0].pictures, PICTURES)


def test_corrupted_on_the_way(tmp_path, site):
    archive = site.archive()
    site.body = TRUE[:500] + bytes([TRUE[500] ^ 1]) + TRUE[501:]
    assert_not_to_be_had(tmp_path, archive, "SHA-256 differs")
    assert not list(tmp_path.iterdir())


def test_cut_short_on_the_way(tmp_path, site):
    archive = site.archive()
    site.body, site.length = TRUE[:-1000], len(TRUE)
    assert_not_to_be_had(tmp_path, archive, "IncompleteRead")
    assert not list(tmp_path.iterdir())


def test_an_html_page_in_its_place(tmp_path, site):
    archive = site.archive()
    site.body, site.kind = b"<html>Please log in to the hotel network</html>", "text/html"
    assert_not_to_be_had(tmp_path, archive, "SHA-256 differs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_has_it_not(tmp_path, site, status):
    site.status = status
    assert_not_to_be_had(tmp_path, site.archive(), "there is nothing at http")
    assert site.downloads == 0


def test_a_server_that_never_stops_sending(tmp_path, site):
    archive = site.archive()
    site.body = bytes(10_000_000)
    assert_not_to_be_had(tmp_path, archive, "sends more than the archive's")
    assert not list(tmp_path.iterdir())


def test_a_slow_server_gets_the_time_it_needs(tmp_path, site):
    site.pieces, site.pause = 8, TIMEOUT / 4
    images, record = load(tmp_path, site.archive(), "auto")
    np.testing.assert_array_equal(images.pictures, PICTURES)
    assert record.used == "cifar10"


def test_a_server_that_falls_silent_during_the_download(tmp_path, site):
    site.pieces, site.pause = 2, 4 * TIMEOUT
    assert_not_to_be_had(tmp_path, site.archive(), "timed out")
    assert not list(tmp_path.iterdir())


def test_nobody_listens(tmp_path, site):
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    archive = replace(site.archive(), url=f"http://127.0.0.1:{port}/{ARCHIVE_NAME}")
    assert_not_to_be_had(tmp_path, archive, r"cannot be reached \(ConnectionError\)")


def drip(connection: socket.socket) -> None:
    """A header that never ends: each byte comes before any timeout of a single read."""
    with connection, contextlib.suppress(OSError):
        for letter in b"HTTP/1.1 200 OK\r\nServer: " + b"x" * 60:
            connection.sendall(bytes([letter]))
            time.sleep(TIMEOUT / 8)


def hang(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        time.sleep(4 * TIMEOUT)


@pytest.mark.parametrize(("behaviour", "why"), [(drip, "did not answer within"), (hang, "")])
def test_a_server_that_never_answers(tmp_path, site, behaviour, why):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed at the end of the test
                while True:
                    threading.Thread(target=behaviour, args=server.accept()[:1], daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        archive = replace(site.archive(), url=f"http://127.0.0.1:{server.getsockname()[1]}/{ARCHIVE_NAME}")
        assert_not_to_be_had(tmp_path, archive, why)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (TRUE[:-2000], "is damaged"),
        (b"<html>", "is damaged"),
        (b"", "is damaged"),
        (packed(*REST), r"holds no data_batch_\*.bin"),
        (packed(FIRST, file("../outside.bin", b"x")), r"a file outside itself \('../outside.bin'\)"),
        (packed(FIRST, file(f"{ROOT}/../../data_batch_2.bin", records(PICTURES))), "a file outside itself"),
        (packed(FIRST, file("/tmp/data_batch_2.bin", records(PICTURES))), "a file outside itself"),
        (packed(FIRST, link("data_batch_2.bin", "/etc/passwd", tarfile.SYMTYPE)), "neither file nor folder"),
        (packed(FIRST, link("data_batch_2.bin", FIRST[0].name, tarfile.LNKTYPE)), "neither file nor folder"),
        (packed(FIRST, link("data_batch_2.bin", "", tarfile.FIFOTYPE)), "neither file nor folder"),
        (packed(FIRST, file("data_batch_2.bin", records(PICTURES)[:-1])), "not 1 to 10,000 records"),
        (packed(FIRST, file("data_batch_2.bin", b"")), "not 1 to 10,000 records"),
        (packed(FIRST, file("data_batch_2.bin", bytes(10_001 * RECORD))), "not 1 to 10,000 records"),
        (packed(FIRST, file("data_batch_2.bin", records(PICTURES, label=10))), "labels beyond 9"),
    ],
)
def test_a_malicious_or_damaged_archive_is_refused_whole(tmp_path, site, body, why):
    """Even with the right checksum; and nothing is ever written outside the data folder."""
    folder = tmp_path / "a" / "b"
    site.body = body
    assert_not_to_be_had(folder, site.archive(body), why)
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", ARCHIVE_NAME}
    with pytest.raises(NoisyTVError):
        read_archive(folder / ARCHIVE_NAME)


def test_a_data_folder_that_cannot_be_written(tmp_path, site):
    taken = tmp_path / "taken"
    taken.write_text("a file, not a folder")
    with pytest.raises(NoisyTVError, match="CIFAR-10 is not to be had"):
        load(taken, site.archive())
    assert load(taken, site.archive(), "auto")[1].used == "photos"


def test_an_archive_in_a_folder_of_somebody_else_is_read_all_the_same(tmp_path, site, monkeypatch):
    """As on a cluster: nothing can be written beside it."""
    (tmp_path / ARCHIVE_NAME).write_bytes(TRUE)

    def denied(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    images, record = load(tmp_path, site.archive())
    np.testing.assert_array_equal(images.pictures, PICTURES)
    assert "was read from" in record.reason


def test_a_wrong_archive_is_named_where_no_other_can_be_had(tmp_path, site):
    (tmp_path / ARCHIVE_NAME).write_bytes(TRUE[:100])
    site.status = 404
    with pytest.raises(NoisyTVError, match=r"is not the true archive \(its SHA-256 differs\), and there is nothing at"):
        load(tmp_path, site.archive())


def test_a_home_of_nobody(tmp_path, site):
    with pytest.raises(NoisyTVError, match="in the home of nobody known here"):
        load(Path("~no-such-user/data"), site.archive())


def test_pictures_on_the_disk_are_not_sent_to_other_processes(tmp_path, site):
    images, _ = load(tmp_path, site.archive())
    sent = pickle.dumps(images)
    assert len(sent) < 1000 < PICTURES.nbytes
    np.testing.assert_array_equal(pickle.loads(sent).pictures, PICTURES)
    sent = pickle.dumps(Collection(PICTURES))
    np.testing.assert_array_equal(pickle.loads(sent).pictures, PICTURES)


def test_the_data_folder_comes_from_the_environment(tmp_path, site, monkeypatch):
    monkeypatch.setenv("DREAMER_LPM_DATA", str(tmp_path / "from-environment"))
    load_images("cifar10", archive=site.archive(), timeout=TIMEOUT)
    assert (tmp_path / "from-environment" / ARCHIVE_NAME).is_file()


def test_without_pooch_the_fix_is_named(tmp_path, site, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(NoisyTVError, match="pip install pooch"):
        load(tmp_path, site.archive())
    assert "pip install pooch" in load(tmp_path, site.archive(), "auto")[1].reason


def test_progress_is_shown_on_a_terminal_only(tmp_path, site, monkeypatch, capsys):
    load(tmp_path / "one", site.archive())
    assert "MB" not in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load(tmp_path / "two", site.archive())
    assert "CIFAR-10: 0.0 of 0.0 MB" in capsys.readouterr().err
