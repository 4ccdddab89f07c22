"""The packages that numbers depend on, known without importing any of them."""

from importlib import metadata

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "minari")


def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on; packages that are not installed are left out."""
    versions = {}
    for name in ("fastdwm", *PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
