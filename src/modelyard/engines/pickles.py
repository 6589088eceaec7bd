"""What is proven of a PyTorch file before torch opens it: that it holds tensors and nothing that runs. It never unpickles."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from picklescan.scanner import SafetyLevel, scan_bytes

from modelyard.engines.files import stored
from modelyard.errors import Unsafe

# How torch.save's files begin: torch.load tells them apart by nothing else, so neither does the scan.
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"


def check_pickle(path: Path) -> None:
    """A PyTorch file may hold tensors only. Raises `Unsafe` for code (naming it), TorchScript, a zip that swells."""
    with path.open("rb") as file:
        start = file.read(4)
        if start == _ZIP:
            _check_zip(path)
        elif not start.startswith(_PICKLE):
            raise Unsafe(f"'{path.name}' was refused unread: it is no file written by torch.save.")
        file.seek(0)
        try:
            result = scan_bytes(file, path.name, ".pth")
        except (OSError, ValueError, EOFError, LookupError) as error:
            raise Unsafe(f"'{path.name}' was refused unread: it cannot be scanned ({error}).") from error
    found = sorted(f"{g.module}.{g.name}" for g in result.globals if g.safety is SafetyLevel.Dangerous)
    if found or result.issues_count:
        raise Unsafe(
            f"'{path.name}' was refused unread: loading it would run {', '.join(found) or 'code'}. Save weights alone: "
            "torch.save(model.state_dict(), path), or safetensors."
        )
    if result.scan_err:
        raise Unsafe(
            f"'{path.name}' was refused unread: it is no whole pickle. Save it anew with torch.save or as safetensors."
        )


def _check_zip(path: Path) -> None:
    names = stored(path)
    if any("code" in PurePosixPath(name).parts[1:-1] or name.endswith("/constants.pkl") for name in names):
        raise Unsafe(f"'{path.name}' is TorchScript, which holds code; give its state_dict and the module's source instead.")
