"""Shapes of what real projects write about ports in devcontainer.json: facts, not their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IGNORE = {"onAutoForward": "ignore"}

REAL_FILES: Mapping[str, dict[str, Any]] = {
    "F01 an integration": {
        "forwardPorts": [8123],
        "portsAttributes": {"8123": {"label": "ha"}, "0-8122": IGNORE, "8124-999999": IGNORE},
    },
    "F02 a network": {
        "forwardPorts": [3000, 4000],
        "portsAttributes": {
            "3000": {"label": "web", "requireLocalPort": True, "onAutoForward": "notify"},
            "4000": {"label": "stream", "requireLocalPort": True, "onAutoForward": "silent"},
        },
        "otherPortsAttributes": {"onAutoForward": "silent"},
    },
    "F03 photos": {
        "forwardPorts": [3000, 9231, 9230, 2283],
        "portsAttributes": {
            "3000": {"label": "web", "description": "dev server", "onAutoForward": "openBrowserOnce"},
            "9230": {"label": "debug", "onAutoForward": "silent"},
        },
    },
    "F04 a supervisor": {"appPort": ["9123:8123", "7357:4357"]},
    "F05 a core": {"appPort": 8123},
    "F06 a framework": {"appPort": [8000, 9000, 6787]},
    "F07 a monorepo": {
        "forwardPorts": [3000, 4000, "postgres:5432", "redis:6379", "meilisearch:7700"],
        "portsAttributes": {"5432": {"label": "db"}, "7700": {"label": "search"}},
    },
    "F08 compose": {
        "forwardPorts": [3000, "serviceb:3000", "db:5432"],
        "portsAttributes": {"serviceb:3000": {"label": "b"}, "db:5432": {"label": "db"}},
    },
    "F09 a database": {"forwardPorts": ["db:1433"]},
    "F10 a CMS": {
        "forwardPorts": [9000, 5000, 25],
        "portsAttributes": {"44331": {"protocol": "https", "onAutoForward": "openBrowser"}},
    },
    "F11 a cloud": {"forwardPorts": [80, 8080, 8025]},
    "F12 a forum": {"forwardPorts": [9292, 3000, 4200, 8025, 9229]},
    "F13 dashboards": {
        "forwardPorts": [9001, 8088],
        "portsAttributes": {"9001": {"onAutoForward": "notify"}, "8088": {"onAutoForward": "silent"}},
    },
    "F14 an editor": {
        "forwardPorts": [6080, 5901],
        "portsAttributes": {"6080": {"onAutoForward": "silent"}, "5901": {"onAutoForward": "silent"}},
    },
    "F15 settings of VS Code": {
        "customizations": {
            "vscode": {
                "settings": {
                    "remote.autoForwardPorts": True,
                    "remote.otherPortsAttributes": IGNORE,
                    "terminal.integrated.cwd": "${localEnv:HOME}",
                }
            }
        }
    },
    "F16 a calendar": {
        "forwardPorts": [3000],
        "portsAttributes": {"3000": {"label": "app", "protocol": "http"}},
        "otherPortsAttributes": {"protocol": "http"},
    },
    "F17 analytics": {"forwardPorts": [8000, 8010, 8234, 5432, 6379, 9000, 9092, 3001, 8123]},
    "F18 pipelines": {"forwardPorts": [8080, 5555, 5432, 6379]},
    "F19 automation": {"forwardPorts": [8080, 5678]},
    "F20 a sample": {"forwardPorts": [50505]},
    "F21 a monorepo": {"forwardPorts": [80, 8080, 27017]},
    "F22 several servers": {"forwardPorts": [5000, 5001, 5002]},
    "F23 a feature's text": {"appPort": ["127.0.0.1:2222:2222"]},
    "F24 a course": {"appPort": ["2222:22"], "portsAttributes": {"22": {"requireLocalPort": "true"}}},
    "F25 a guide": {"forwardPorts": [3000], "portsAttributes": {"3000": {"label": "x", "visibility": "public"}}},
    "F26 a clone": {"forwardPorts": ["192.0.2.1", 5127]},
    "F27 another tool's test": {
        "forwardPorts": [5173, "3000", "localhost:4000", "db:5432", "x", 0, 70000, 1.5, None, 5173],
        "appPort": ["8080:9000", "127.0.0.1:8081:9001/tcp", "53:53/udp", 9002],
        "portsAttributes": {"04000": {"label": "x"}},
    },
    "F28 the service itself": {"forwardPorts": ["app:5173", "db:5432"]},
    "F29 a star": {"portsAttributes": {"*": {"requireLocalPort": True}}},
    "F30 the same twice": {"forwardPorts": list(range(3000, 3010)), "appPort": list(range(3000, 3010))},
    "F31 a proxy": {"forwardPorts": [80, 443, 9090], "otherPortsAttributes": IGNORE},
    "F32 under ignore": {"forwardPorts": ["docs:8001", "server:8000"], "otherPortsAttributes": IGNORE},
    "a port of the environment": {"forwardPorts": ["${localEnv:PORT:3000}"]},
    "no ports at all": {"image": "debian", "containerEnv": {"TOKEN": "${localEnv:GITHUB_TOKEN}"}},
}

ASKS: Mapping[str, list[str]] = {"F27 another tool's test": ["53:53/udp"]}
"""Of a user who may bind it: that file pins the name service's number."""
