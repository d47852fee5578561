"""scripts/fetch_transformers_tests.py unpacks the files of tests/, and nothing else of an archive."""

import io
import runpy
import tarfile

import pytest

from support import ROOT

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "fetch_transformers_tests.py"))
WANTED = "transformers-5.24.0/tests/test_modeling_common.py"


def packed(path, *members: tarfile.TarInfo):
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = 4 if member.isfile() else 0
            archive.addfile(member, io.BytesIO(b"x=1\n"))
    return path


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "foreign",
    [
        tarfile.TarInfo("transformers-5.24.0/tests/../../test_outside.py"),
        tarfile.TarInfo("transformers-5.24.0/tests/folder/test_below.py"),
        tarfile.TarInfo("/transformers-5.24.0/tests/test_absolute.py"),
        tarfile.TarInfo("other-1.0/tests/test_other.py"),
        tarfile.TarInfo("transformers-5.24.0/src/transformers/test_source.py"),
        link("transformers-5.24.0/tests/test_link.py", tarfile.SYMTYPE, "/etc/passwd"),
        link("transformers-5.24.0/tests/test_hard_link.py", tarfile.LNKTYPE, WANTED),
    ],
    ids=lambda member: member.name,
)
def test_nothing_else_is_unpacked(tmp_path, foreign):
    archive = packed(tmp_path / "archive.tar.gz", tarfile.TarInfo(WANTED), foreign)
    SCRIPT["unpack"](archive, tmp_path / "made" / "package")
    made = sorted(path.name for path in tmp_path.rglob("*.py"))
    assert made == ["__init__.py", "test_modeling_common.py"]
    assert (tmp_path / "made" / "package" / "test_modeling_common.py").read_text() == "x=1\n"


def test_an_archive_without_tests(tmp_path):
    archive = packed(tmp_path / "archive.tar.gz", tarfile.TarInfo("transformers-5.24.0/README.md"))
    with pytest.raises(ValueError, match="no source distribution"):
        SCRIPT["unpack"](archive, tmp_path / "made")


def test_nothing_is_fetched_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = SCRIPT["cache_folder"]()
    (folder / SCRIPT["PACKAGE"]).mkdir(parents=True)
    assert SCRIPT["fetch"]() == folder and tmp_path in folder.parents
