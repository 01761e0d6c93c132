"""What a folder holds."""


def entries(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
