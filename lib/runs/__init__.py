"""From a RunSpec to records, and which arms a profile has.

`RunSpec` and `run_stream` are imported when they are asked for: what only reads profiles and stamps, as make
does all the time, then needs no torch.
"""

__all__ = ["RunSpec", "run_stream"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from lib.runs import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
