"""How many filters each site keeps."""

from lib.errors import UserError

SCOPES = ("uniform",)


def allocate(widths: list[int], ratio: float, scope: str, round_to: int) -> list[int]:
    """Filters kept at each site of the given `widths` when the share `ratio` is removed.

    `uniform` removes the same share everywhere. Kept counts are rounded to the nearest multiple of
    `round_to`, are at least `round_to` and never above the width. Raises UserError where nothing
    would be removed at a ratio above 0.
    """
    if scope not in SCOPES:
        raise UserError(f"Unknown scope {scope!r}: expected one of {', '.join(SCOPES)}.")
    if not 0 <= ratio < 1:
        raise UserError(f"ratio={ratio} is out of range: expected a share in 0 <= ratio < 1, such as 0.5.")
    if round_to < 1:
        raise UserError(f"round_to={round_to} is out of range: expected a whole number of 1 or more.")
    if ratio == 0:
        return widths
    kept = [min(width, max(round_to, round((1 - ratio) * width / round_to) * round_to)) for width in widths]
    if kept == widths:
        raise UserError(
            f"ratio={ratio} removes no filter once the widths {sorted(set(widths))} are rounded to "
            f"multiples of {round_to}: choose a larger ratio or a smaller round_to."
        )
    return kept
