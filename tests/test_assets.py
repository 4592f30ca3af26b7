"""Assets from a server on this machine: whole, cut and resumed, changed, wrong; and local copies."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from twinbench import assets, files
from twinbench.assets import Asset, File
from twinbench.errors import UserError, WorkError

BODY = bytes(range(256)) * 5000  # 1.28 MB: more than one block
SUM = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends `body`, or its first `cut` bytes; obeys Range if `ranges`; keeps the Range headers in `asked`."""

    body, cut, ranges, daemon_threads = BODY, None, True, True


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        s, wanted = self.server, self.headers.get("Range")
        s.asked.append(wanted)
        if "lost" in self.path:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and s.ranges else 0
        if start and start >= len(s.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(s.body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(s.body) - 1}/{len(s.body)}")
        self.send_header("Content-Length", str(len(s.body) - start))
        self.end_headers()
        self.wfile.write(s.body[start : None if s.cut is None else start + s.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setattr(assets, "ASSETS", {"thing": Asset("a thing", "MIT", (file_at(made),))})
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def file_at(server, sha256="", size=0, name="x.bin"):
    return File(f"sub/{name}", f"http://127.0.0.1:{server.server_port}/{name}", sha256, size)


def known(monkeypatch, *files):
    monkeypatch.setattr(assets, "ASSETS", {"thing": Asset("a thing", "MIT", files)})


def test_a_file_arrives_whole_is_recorded_and_not_fetched_again(server):
    with pytest.raises(UserError, match="twinbench fetch thing"):
        assets.path("thing")
    progress = list(assets.fetch("thing"))
    assert assets.path("thing").read_bytes() == BODY
    assert progress[0][1] == 0 and progress[-1] == ("sub/x.bin", len(BODY), len(BODY))
    lock = json.loads((assets.root() / assets.LOCK).read_text())
    assert lock["sub/x.bin"]["sha256"] == SUM and lock["sub/x.bin"]["size"] == len(BODY)
    list(assets.fetch("thing"))
    assert server.asked == [None]


def test_a_cut_download_goes_on_where_it_stopped(server):
    server.cut = 500_000
    with pytest.raises(WorkError, match="the same command goes on"):
        list(assets.fetch("thing"))
    part = assets.root() / "sub" / "x.bin.part"
    assert part.stat().st_size == 500_000 and not (assets.root() / "sub" / "x.bin").exists()
    server.cut = None
    assert next(iter(assets.fetch("thing")))[1] == 500_000
    list(assets.fetch("thing"))
    assert assets.path("thing").read_bytes() == BODY and not part.exists()
    assert server.asked[1].startswith("bytes=500000")


def test_a_server_without_ranges_starts_anew(server):
    server.cut = 500_000
    with pytest.raises(WorkError):
        list(assets.fetch("thing"))
    server.cut, server.ranges = None, False
    list(assets.fetch("thing"))
    assert assets.path("thing").read_bytes() == BODY


@pytest.mark.parametrize("held", [BODY, BODY + b"more"])
def test_a_part_that_is_whole_or_too_long_is_no_trap(server, held):
    part = assets.root() / "sub" / "x.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(held)
    list(assets.fetch("thing"))
    assert assets.path("thing").read_bytes() == BODY


def test_a_wrong_sum_is_refused_and_what_came_is_deleted(server, monkeypatch):
    known(monkeypatch, file_at(server, sha256="0" * 64))
    with pytest.raises(WorkError, match=f"has sha256 {SUM[:12]}"):
        list(assets.fetch("thing"))
    assert not list((assets.root() / "sub").iterdir())
    known(monkeypatch, file_at(server, sha256=SUM[:8]))  # the first digits are enough
    list(assets.fetch("thing"))
    known(monkeypatch, file_at(server, size=7))
    assets.path("thing").unlink()
    (assets.root() / assets.LOCK).unlink()
    with pytest.raises(WorkError, match="1280000 bytes now, not 7"):
        list(assets.fetch("thing"))


def test_what_the_first_download_recorded_holds(server):
    list(assets.fetch("thing"))
    assets.path("thing").write_bytes(b"damaged")
    with pytest.raises(WorkError, match="delete it and fetch thing again"):
        list(assets.fetch("thing"))
    assets.path("thing").unlink()
    server.body = BODY[:-1] + b"!"  # the publisher changed it
    with pytest.raises(WorkError, match="sha256"):
        list(assets.fetch("thing"))
    assert not (assets.root() / "sub" / "x.bin").exists()


def test_no_file_and_no_server_are_one_line_each(server, monkeypatch):
    known(monkeypatch, file_at(server, name="lost.bin"))
    with pytest.raises(WorkError, match="answers 404"):
        list(assets.fetch("thing"))
    known(monkeypatch, File("y", "http://127.0.0.1:9/y"))
    with pytest.raises(WorkError, match="cannot be reached"):
        list(assets.fetch("thing"))
    with pytest.raises(UserError, match="did you mean 'thing'"):
        list(assets.fetch("thin"))


def test_a_local_copy_is_taken_and_checked(server, monkeypatch, tmp_path):
    known(monkeypatch, file_at(server, sha256=SUM))
    copy = tmp_path / "copies" / "x.bin"
    copy.parent.mkdir()
    with pytest.raises(UserError, match=r"no x\.bin"):
        list(assets.fetch("thing", copy.parent))
    copy.write_bytes(b"another")
    with pytest.raises(UserError, match="not the published file"):
        list(assets.fetch("thing", copy))
    copy.write_bytes(BODY)
    list(assets.fetch("thing", copy.parent))
    copy.write_bytes(b"another")
    with pytest.raises(UserError, match="not the published file"):  # though its sum was recorded, too
        list(assets.fetch("thing", copy))
    assert files.sha256(assets.path("thing")) == SUM and server.asked == []


def test_a_copy_that_differs_from_the_first_one_is_told_from_a_published_file(server, tmp_path):
    copy = tmp_path / "x.bin"
    copy.write_bytes(b"the first")
    list(assets.fetch("thing", copy))
    copy.write_bytes(b"the next!")
    with pytest.raises(UserError, match=r"not the file that .*assets\.lock\.json recorded first") as told:
        list(assets.fetch("thing", copy))
    assert "published" not in str(told.value) and "delete its entry" in str(told.value)
    assert assets.path("thing").read_bytes() == b"the first"
    (assets.root() / assets.LOCK).unlink()
    list(assets.fetch("thing", copy))
    assert assets.path("thing").read_bytes() == b"the next!"


def test_one_file_is_no_copy_of_several(server, monkeypatch, tmp_path):
    known(monkeypatch, file_at(server), file_at(server, name="y.bin"))
    (tmp_path / "x.bin").write_bytes(BODY)
    with pytest.raises(UserError, match="several files"):
        list(assets.fetch("thing", tmp_path / "x.bin"))
    assert not assets.root().exists()
    (tmp_path / "y.bin").write_bytes(b"the other")
    list(assets.fetch("thing", tmp_path))
    assert assets.path("thing", 1).read_bytes() == b"the other"


def test_a_damaged_record_of_sums_is_one_line(server):
    (assets.root()).mkdir()
    (assets.root() / assets.LOCK).write_text("{")
    with pytest.raises(UserError, match="delete it"):
        list(assets.fetch("thing"))


def test_the_pinned_sums_are_those_of_the_prompts_that_the_program_makes(tmp_path, monkeypatch):
    from twinbench.data.geneval import prompts

    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path / "assets"))
    copy = tmp_path / "evaluation_metadata.jsonl"
    copy.write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    list(assets.fetch("geneval", copy))
    assert assets.path("geneval").read_bytes() == copy.read_bytes()


def test_the_command_takes_a_copy_and_lists_what_is_here(tmp_path):
    import os
    import subprocess
    import sys

    (tmp_path / "dpg_bench.csv").write_text("item_id,text\n")
    env = {**os.environ, "TWINBENCH_ASSETS": str(tmp_path / "assets"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "twinbench", "fetch"]
    done = subprocess.run([*command, "dpg", "--from", str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "assets" / "dpg" / "dpg_bench.csv")
    listed = subprocess.run(command, env=env, capture_output=True, text=True).stdout.splitlines()
    assert next(line for line in listed if line.startswith("dpg")).split()[1] == "here"
    assert next(line for line in listed if line.startswith("inception")).split()[1] == "-"
    wrong = subprocess.run([*command, "dgp"], env=env, capture_output=True, text=True)
    assert wrong.returncode == 2 and "did you mean 'dpg'" in wrong.stderr
