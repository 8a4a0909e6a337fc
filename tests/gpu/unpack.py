"""Unpack the wheels and archives of a folder into another one, for PYTHONPATH: `python unpack.py FOLDER TARGET`."""

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path


def unpack(folder, target):
    """Unpack every wheel and tar archive of `folder`; copy its unpacked packages.

    Raises:
        SystemExit: There is none.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(target)
        elif path.is_file() and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                archive.extractall(target, filter="data")
        elif (path / "__init__.py").is_file():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            continue
        found.append(path.name)
    if not found:
        raise SystemExit(f"{folder} has no wheels, tar archives or packages: see tests/gpu/run.sh")
    return found


if __name__ == "__main__":
    for name in unpack(Path(sys.argv[1]), Path(sys.argv[2])):
        sys.stdout.write(f"unpacked {name}\n")
