"""The header by which a sender shows its token; apart, because small processes need nothing else of the lab."""

from pathlib import Path


def shown(file: Path) -> dict[str, str]:
    """The header with the token that is in the file now: tokens are changed while somebody holds them."""
    return {"Authorization": f"Bearer {file.read_text().strip()}"}
