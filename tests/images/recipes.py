"""What is in each test image: packages, and what `nc` is. Data only; its text is part of every image's tag.

| image | has | for |
|---|---|---|
| full | bash, socat, OpenBSD, traditional and ncat `nc`, python3 | everything; the default |
| openbsd, traditional, ncat | that `nc` alone, python3; no bash, no socat | the nc lane, each flavour |
| devtcp | bash, python3; no socat, no nc | the `/dev/tcp` lane |
| nolane | dash, coreutils, sed, grep | nothing in it can carry a connection |
| busybox | one static busybox | nc and ash of busybox |
| arm64 | python3, built for arm64 | the agent for arm64; only where such programs run |

Each has a user `dev` (1000). Where there is no python3 a server comes from a busybox `httpd` off the PATH, in
`/opt/autoforward-test`, which no probe for relay tools finds.
"""

from __future__ import annotations

from dataclasses import dataclass

HELPER_DIR = "/opt/autoforward-test"
BASE_PACKAGES = ("base-files", "base-passwd", "dash", "coreutils", "libc-bin", "sed", "grep")
SERVER_PACKAGES = ("python3",)


@dataclass(frozen=True)
class Recipe:
    """One image. `packages` come on top of BASE_PACKAGES; `nc` is the file that the command `nc` stands for.

    `architecture` is another one than the machine's, as dpkg and the engine call it.
    """

    packages: tuple[str, ...]
    nc: str | None = None
    architecture: str | None = None

    @property
    def has_python(self) -> bool:
        return "python3" in self.packages


RECIPES: dict[str, Recipe] = {
    "full": Recipe(
        (*SERVER_PACKAGES, "bash", "socat", "netcat-openbsd", "netcat-traditional", "ncat"), "/bin/nc.openbsd"
    ),
    "openbsd": Recipe((*SERVER_PACKAGES, "netcat-openbsd"), "/bin/nc.openbsd"),
    "traditional": Recipe((*SERVER_PACKAGES, "netcat-traditional"), "/bin/nc.traditional"),
    "ncat": Recipe((*SERVER_PACKAGES, "ncat"), "/usr/bin/ncat"),
    "devtcp": Recipe((*SERVER_PACKAGES, "bash")),
    "nolane": Recipe(()),
    "arm64": Recipe(SERVER_PACKAGES, architecture="arm64"),
}
BUSYBOX, ARM64 = "busybox", "arm64"
IMAGE_NAMES = (*(name for name, recipe in RECIPES.items() if recipe.architecture is None), BUSYBOX)
"""What every machine builds."""

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
dev:x:1000:1000:dev:/home/dev:/bin/sh
"""
GROUP = "root:x:0:\nnogroup:x:65534:\ndev:x:1000:\n"
PAGE = "hello from busybox\n"
