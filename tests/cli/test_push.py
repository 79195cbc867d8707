"""`compress push`, asked of a fake hub on this machine."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from compressor import cli
from compressor.errors import InputError
from compressor.runner.push import push

FILES = {
    "config.json": "{}",
    "README.md": "---\nlibrary_name: onnx\n---\n# A model\n",
    "onnx/model.onnx": "graph",
    "serve/fastapi/app.py": "app = 1\n",
}


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of a hub to make a repository and commit small files, and what it was told."""

    def __init__(self, *, status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = status
        self.asked = []
        self.made = []
        self.files = {}
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(("GET", self.path, self.headers.get("Authorization")))
        self.answer({"id": "org/name", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(("POST", self.path, self.headers.get("Authorization")))
        if self.server.status != 200:
            self.answer({"error": "You may not write here"}, self.server.status)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.answer({"url": f"{self.server.endpoint}/org/name", "name": "org/name", "id": "1"})
        elif "/preupload/" in self.path:
            files = [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.server.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            self.answer({"commitUrl": f"{self.server.endpoint}/org/name/commit/1", "commitOid": "1" * 40})
        else:  # the check of the model card's head
            self.answer({"errors": [], "warnings": []})

    def log_message(self, *_words):
        """Say nothing."""


@pytest.fixture
def start(monkeypatch):
    """Starts a fake hub that huggingface_hub asks in this process."""
    begun = []

    def begin(**settings):
        from huggingface_hub import constants

        hub = Hub(**settings)
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        begun.append(hub)
        return hub

    yield begin
    for hub in begun:
        hub.shutdown()
        hub.server_close()


@pytest.fixture
def run(tmp_path):
    """A run directory with a finished model."""
    final = tmp_path / "run" / "final"
    for name, content in FILES.items():
        (final / name).parent.mkdir(parents=True, exist_ok=True)
        (final / name).write_text(content)
    (tmp_path / "run" / "stages").mkdir()
    told(final, verdict="pass")
    return tmp_path / "run"


def told(final, **content):
    (final / "compressor.json").write_text(json.dumps(content))


def compress(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="compress")


def test_push_uploads_every_file_of_final_in_one_commit(run, start):
    hub = start()
    done = compress("push", run, "org/name", "--private")
    assert done.exit_code == 0, done.output
    assert hub.files == {
        path.relative_to(run / "final").as_posix(): path.read_bytes()
        for path in (run / "final").rglob("*")
        if path.is_file()
    }
    assert hub.made[0]["name"] == "name"
    assert hub.made[0]["organization"] == "org"
    assert "private" in json.dumps(hub.made[0])
    assert sum("/commit/" in path for _, path, _ in hub.asked) == 1
    assert {token for _, path, token in hub.asked if "/commit/" in path} == {"Bearer hf_secret"}
    assert f"5 files, 0.0 MB: is at {hub.endpoint}/org/name" in done.output
    assert "hf_secret" not in done.output


def test_a_dry_run_lists_the_files_and_asks_nothing(run, start):
    hub = start()
    done = compress("push", run, "org/name", "--dry-run")
    assert done.exit_code == 0
    assert hub.asked == []
    assert [line.split()[-1] for line in done.output.splitlines()[:-1]] == sorted([*FILES, "compressor.json"])
    assert done.output.splitlines()[-1] == "5 files, 0.0 MB: would go to org/name; nothing was uploaded"
    content = json.loads(compress("push", run, "org/name", "--dry-run", "--json").output)
    assert content["url"] is None
    assert ["config.json", 2] in content["files"]


def test_a_model_that_broke_its_budget_is_pushed_only_when_forced(run, start):
    hub = start()
    told(run / "final", verdict="fail")
    done = compress("push", run, "org/name")
    assert done.exit_code == 3
    assert "broke its budget, so it is not pushed; push it all the same with --force" in done.output
    assert hub.asked == []
    assert compress("push", run, "org/name", "--force").exit_code == 0
    assert set(hub.files) == {*FILES, "compressor.json"}


def test_what_a_smoke_run_made_is_pushed_only_when_forced(run, start):
    hub = start()
    told(run / "final", verdict="none", smoke=True)
    done = compress("push", run, "org/name")
    assert (done.exit_code, hub.asked) == (3, [])
    assert "holds a model that a smoke run made, so it is not pushed" in done.output
    assert compress("push", run, "org/name", "--force").exit_code == 0


def test_a_hub_that_is_not_reached_is_told_in_one_line(run, start):
    hub = start()
    hub.shutdown()
    hub.server_close()
    done = compress("push", run, "org/name")
    assert done.exit_code == 2
    assert "the hub did not take org/name: " in done.output
    assert "try again later" in done.output
    assert "bug" not in done.output


def test_a_run_that_is_not_finished_is_refused(run):
    (run / "final" / "compressor.json").unlink()
    done = compress("push", run, "org/name")
    assert done.exit_code == 2
    assert "holds no final/, so there is nothing to push; finish the run first: compress RECIPE" in done.output
    with pytest.raises(InputError, match="nothing to push"):
        push(run / "nowhere", "org/name")


def test_the_folder_of_a_finished_model_can_be_pushed_and_no_other(run, tmp_path):
    assert len(push(run / "final", "org/name", dry_run=True).files) == 5
    (tmp_path / "other").mkdir()
    told(tmp_path / "other", labels=["bad", "good"])
    with pytest.raises(InputError, match="is neither a run nor a finished model; give a run directory"):
        push(tmp_path / "other", "org/name", dry_run=True)


@pytest.mark.parametrize("name", ["name", "a/b/c", "/name", "org/", "or g/name", "org/../etc", "-org/name"])
def test_a_repository_is_org_and_name(run, name):
    with pytest.raises(
        InputError, match=re.escape(f"must be ORG/NAME in letters, digits, '-', '_' and '.' (got {name!r})")
    ):
        push(run, name, dry_run=True)


def test_hidden_files_stay_here_and_links_are_refused(run, tmp_path):
    (run / "final" / ".env").write_text("SECRET=1")
    (run / "final" / "__pycache__").mkdir()
    (run / "final" / "__pycache__" / "predict.pyc").write_bytes(b"")
    assert {name for name, _ in push(run, "org/name", dry_run=True).files} == {*FILES, "compressor.json"}
    (run / "final" / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match=r"vocab\.txt is a link; put the file itself there, or remove it"):
        push(run, "org/name", dry_run=True)


def test_a_hub_that_refuses_is_told_in_one_line(run, start):
    start(status=403)
    done = compress("push", run, "org/name")
    assert done.exit_code == 2
    assert "the hub did not take org/name: " in done.output
    assert "log in with a token that may write there: hf auth login" in done.output
    assert "Traceback" not in done.output


def test_without_network_push_says_what_forbids_it(run, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids the network, which push needs; unset it"):
        push(run, "org/name")
