"""The store of before-images against a model of it, without a server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ab_cluster import pg_config

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = ROOT / "extension"
WRAPPED = ["pread", "pwrite", "pwritev", "close", "unlink", "fallocate"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program ``images_model``, built with assertions from the store's own sources."""
    program = tmp_path_factory.mktemp("images_model") / "images_model"
    sources = sorted(
        path
        for path in (EXTENSION / "src").glob("ab_image*.c")
        if path.stem != "ab_image"  # adoption images: WAL, no store
    )
    # Functions of the server that its library for programs has as well.
    folders = [Path(pg_config(option)) for option in ("--pkglibdir", "--libdir")]
    port = next(path for path in (f / "libpgport.a" for f in folders) if path.exists())
    command = [
        "gcc",
        *["-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE", "-DUSE_ASSERT_CHECKING"],
        *[f"-I{EXTENSION / 'include'}", f"-I{pg_config('--includedir-server')}"],
        *[f"-Wl,--wrap={name}" for name in WRAPPED],
        *["-o", str(program), str(ROOT / "tests" / "images_model.c")],
        *[str(path) for path in [*sources, EXTENSION / "src" / "ab_snapid.c", port]],
        "-lm",
    ]
    subprocess.run(command, check=True)
    return program


def test_images_model(model: Path, tmp_path: Path, seed: int) -> None:
    """Saving, superseding, reading, giving back: with crashes, power cuts, failing calls.

    Nothing that was reported as saved is lost, nothing is seen by a snapshot that it should
    not see, what nobody needs is given back, and what must not raise does not.
    """
    done = subprocess.run(
        [str(model), str(tmp_path), str(seed), "60", "100"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
