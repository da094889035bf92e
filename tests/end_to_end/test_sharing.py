"""Two git repositories and a cache between them: examples/sharing played in full, over a folder and over S3."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
import yaml

from pipeline.store import open_cache, verify
from tests.store.small import small_cache

ROOT = Path(__file__).resolve().parents[2]
S3 = "s3://distillation/teachers"


@dataclass(frozen=True)
class Story:
    """A story that was played in ``folder``; ``printed`` is what the script said, ``environment`` what it ran under."""

    folder: Path
    printed: str
    environment: dict[str, str]

    def run(self, place: str, *command: str) -> str:
        """What a command prints in a folder of the story; its failure fails the test."""
        return run(self.folder / place, self.environment, *command)


def run(folder: Path, environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 with a bucket."""
    pytest.importorskip("dvc_s3")
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    moto.start()
    host, port = moto.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    fsspec.filesystem("s3", endpoint_url=endpoint, key="testing", secret="testing").mkdir("distillation")
    yield endpoint
    moto.stop()


@pytest.fixture(scope="module", params=["folder", "s3"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    pytest.importorskip("dvc")
    home = tmp_path_factory.mktemp("home")
    binaries = home / "bin"
    binaries.mkdir()
    (binaries / "softlabels").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stages.cli "$@"\n')
    (binaries / "softlabels").chmod(0o755)
    path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    # DVC keeps state of the machine, too: none of it is shared between tests.
    environment |= {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(home / "site"),
        "XDG_CACHE_HOME": str(home / "xdg"),
    }
    remote: list[str] = []
    if request.param == "s3":
        remote = [S3, request.getfixturevalue("s3")]
        environment |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        environment |= {"AWS_DEFAULT_REGION": "us-east-1", "FSSPEC_S3_ENDPOINT_URL": remote[1]}
    shutil.copytree(ROOT / "examples" / "sharing", home / "sharing", ignore=shutil.ignore_patterns("__pycache__"))
    printed = run(home, environment, "sharing/share.sh", "story", *remote)
    return Story(home / "story", printed, environment)


def test_the_consumer_has_a_student_and_no_teacher(story: Story) -> None:
    consumer = story.folder / "consumer"
    committed = story.run("consumer", "git", "ls-files").split()
    assert {"caches/digits.dvc", "our_student.py", "dvc.lock"} <= set(committed)
    everything = [path.relative_to(consumer).as_posix() for path in consumer.rglob("*")]
    assert not [path for path in everything if "teacher" in path]
    metrics = json.loads((consumer / "evaluations/student/metrics.json").read_text())
    assert metrics["accuracy"] > 0.8 and metrics["teacher_accuracy"] > 0.9


def test_the_cache_travels_and_the_weights_stay(story: Story) -> None:
    theirs, ours = (open_cache(story.folder / place / "caches/digits") for place in ("publisher", "consumer"))
    assert theirs.digest == ours.digest and verify(ours).ok
    manifest, weights = (
        hashlib.md5((story.folder / "publisher" / path).read_bytes()).hexdigest()
        for path in ("caches/digits/manifest.json", "models/teacher/model.safetensors")
    )
    held = remote_of(story)
    assert f"{manifest[:2]}/{manifest[2:]}" in held and f"{weights[:2]}/{weights[2:]}" not in held
    assert not [p for p in (story.folder / "consumer/.dvc/cache").rglob("*") if p.name == weights[2:]]


def remote_of(story: Story) -> set[str]:
    """What the publisher's remote holds, as the two pieces of an md5."""
    endpoint = story.environment.get("FSSPEC_S3_ENDPOINT_URL")
    if endpoint is None:
        found = [str(path) for path in (story.folder / "remote").rglob("*") if path.is_file()]
    else:
        bucket = fsspec.filesystem("s3", endpoint_url=endpoint, key="testing", secret="testing")
        found = bucket.find(S3)
    return {"/".join(path.split("/")[-2:]) for path in found if "/files/md5/" in path}


def test_a_second_time_does_nothing(story: Story) -> None:
    printed = story.run("consumer", "dvc", "repro", "--pull", "--allow-missing")
    assert "Running stage" not in printed


def test_a_fresh_clone_fetches_what_it_needs(story: Story) -> None:
    story.run(".", "git", "clone", "--quiet", "consumer", "clone")
    clone = story.folder / "clone"
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["train"]["epochs"] = 2
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    assert not (clone / "caches/digits").exists()
    printed = story.run("clone", "dvc", "repro", "--pull", "--allow-missing", "train")
    assert "Running stage 'train'" in printed
    assert open_cache(clone / "caches/digits").digest == open_cache(story.folder / "consumer/caches/digits").digest
    run_of = json.loads((clone / "runs/student/run.json").read_text())
    assert run_of["config"]["epochs"] == 2


def test_a_reference_file_of_an_import_names_the_publishers_remote(story: Story) -> None:
    """The clone has the cache from an import: its own remote never held it."""
    story.run("consumer", "softlabels", "cache", "refs", "caches/digits", "--out", "../again.refs.json", "--check")
    published = (story.folder / "digits.refs.json").read_bytes()
    assert (story.folder / "again.refs.json").read_bytes() == published
    found = json.loads(published)
    where = S3 if found["refs"]["manifest.json"][0].startswith("s3") else f"file://{story.folder}/remote"
    assert {url[0].rpartition("/files/md5/")[0] for url in found["refs"].values()} == {where}
    assert "sound" in story.run("third", "softlabels", "cache", "verify", "../digits.refs.json")


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository, the current folder, with a cache from ``dvc add`` that is not pushed yet."""
    pytest.importorskip("dvc")
    (tmp_path / "repo/caches").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repo")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    small_cache(tmp_path / "repo/caches/small")
    for command in (
        "git init --quiet",
        "dvc init --quiet",
        "dvc config core.analytics false",
        f"dvc remote add --default store {tmp_path}/remote",
        "dvc add --quiet caches/small",
    ):
        run(tmp_path / "repo", {**os.environ, "PYTHONWARNINGS": "ignore"}, *command.split())
    return tmp_path / "repo"


def refs(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.cli", "cache", "refs", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_an_added_cache(added: Path) -> None:
    early = refs("caches/small", "--check")
    assert early.returncode == 1 and "dvc push" in early.stderr and not list(added.glob("caches/*.json"))
    run(added, {**os.environ, "PYTHONWARNINGS": "ignore"}, "dvc", "push", "--quiet")
    shutil.rmtree(added / "caches/small")
    made = refs("caches/small", "--check", "--json")
    report = json.loads(made.stdout)
    assert report["out"] == "caches/small.refs.json" and report["checked"] and report["endpoint"] is None
    cache = open_cache(added / "caches/small.refs.json")
    assert verify(cache).ok and report["files"] == len(cache.file_records()) + 1
    first = (added / "caches/small.refs.json").read_bytes()
    # Without DVC's own cache, the list of files comes from the remote; the bytes are the same.
    shutil.rmtree(added / ".dvc/cache")
    assert refs("caches/small", "--check", "--out", "x.refs.json").returncode == 0
    assert (added / "x.refs.json").read_bytes() == first
    public = refs("caches/small", "--url", "https://data.example.org/d/", "--out", "public.refs.json")
    assert public.returncode == 0 and "--check" in public.stdout
    url = json.loads((added / "public.refs.json").read_text())["refs"]["manifest.json"][0]
    assert url.startswith("https://data.example.org/d/files/md5/")
    (gone,) = (added.parent / "remote").rglob(url.rpartition("/")[2])
    gone.unlink()
    for where in ((), ("--url", f"file://{added.parent}/remote")):
        lacks = refs("caches/small", "--check", *where)
        assert lacks.returncode == 1 and "lacks 1 file of" in lacks.stderr and "manifest.json" in lacks.stderr


def test_what_has_no_references(added: Path) -> None:
    (added / "notes").mkdir()
    (added / "notes/a.txt").write_text("a")
    (added / "b.txt").write_text("b")
    run(added, {**os.environ, "PYTHONWARNINGS": "ignore"}, "dvc", "add", "--quiet", "notes", "b.txt")
    (added.parent / "plain").mkdir()
    expected = {
        ("notes",): "no manifest.json",
        ("caches/small/index",): "no manifest.json",
        ("b.txt",): "is a file",
        ("caches/other",): "tracked by no dvc.lock",
        ("../plain",): "no DVC repository",
        ("caches/small", "--remote", "elsewhere"): "elsewhere",
        ("caches/small", "--out", "small.json"): "refs.json",
        ("caches/small", "--url", "ssh://host/x"): "ssh:// is not read",
    }
    for words, message in expected.items():
        done = refs(*words)
        assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr, words
    run(added, dict(os.environ), "dvc", "remote", "remove", "store")
    none = refs("caches/small")
    assert none.returncode in (1, 2) and "remote" in none.stderr
