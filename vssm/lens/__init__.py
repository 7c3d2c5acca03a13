"""`vssm lens`: a local web page for looking inside models. Needs the extra `lens` (starlette, uvicorn).

Everything stays in memory and on this machine: uploads are never written, and nothing is sent anywhere.
"""

# Modules, imported when asked for.
# pyright: reportUnsupportedDunderAll=false
__all__ = ["checkpoints", "encoding", "images", "looks", "networks", "refused", "requests", "server"]
