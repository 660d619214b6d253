"""A function that does nothing: what is left is what functions-framework costs."""

from starlette.requests import Request


async def main(_: Request) -> str:
    """Answer."""
    return "ok"
