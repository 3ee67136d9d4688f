"""TARGET to container: folders first, then names, then `project/service[#n]`; and what is said when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from autoforward.core.errors import TargetError, UsageError
from autoforward.core.model import ContainerInfo
from autoforward.engine.client import Engine
from autoforward.engine.targets import resolve_project, resolve_target

pytestmark = pytest.mark.unit

LOCAL_FOLDER = "devcontainer.local_folder"


class Containers:
    """What `resolve_target` asks of an engine."""

    def __init__(self, *containers: ContainerInfo) -> None:
        self.containers = containers

    def inspect(self, container_ref: str) -> ContainerInfo:
        assert container_ref.strip("."), "the engine's client asks for something else then, and gets it"
        for info in self.containers:
            if container_ref == info.name or (container_ref and info.container_id.startswith(container_ref)):
                return info
        raise TargetError(f"no such container: {container_ref}")

    def running(self, *, all: bool) -> list[tuple[str, dict[str, str]]]:
        """Labels of images, too: claims have all of them."""
        claimed = {LOCAL_FOLDER: str(Path.cwd())}
        return [(info.name, claimed if info.name.startswith("claims-") else info.labels) for info in self.containers]

    def find_containers(self, labels: Mapping[str, str | None], *, all: bool = True) -> list[ContainerInfo]:
        return [info for info in self.containers if labels.items() <= info.labels.items()]

    def find_claims(self, labels: Mapping[str, str | None], *, all: bool = True) -> list[ContainerInfo]:
        return self.find_containers(labels) + [info for info in self.containers if info.name.startswith("claims-")]


def info(name: str, state: str = "running", **labels: str) -> ContainerInfo:
    return ContainerInfo(f"{name.encode().hex()}00", name, state, labels)


def of_service(name: str, service: str, number: int, state: str = "running") -> ContainerInfo:
    prefix = "com.docker.compose."
    labels = {f"{prefix}project": "shop", f"{prefix}service": service, f"{prefix}container-number": str(number)}
    return ContainerInfo(f"{name.encode().hex()}00", name, state, labels)


def resolve(target: str, *containers: ContainerInfo) -> str:
    return resolve_target(cast(Engine, Containers(*containers)), target).name


def refused(target: str, *containers: ContainerInfo) -> TargetError:
    with pytest.raises(TargetError) as caught:
        resolve(target, *containers)
    assert caught.value.exit_code == 4
    return caught.value


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, called `web`, as a dev container's."""
    folder = (tmp_path / "web").resolve()
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def configure(folder: Path) -> None:
    (folder / ".devcontainer.json").write_text("{}")


def test_a_name_or_an_id() -> None:
    web, api = info("web"), info("api")
    assert resolve("web", web, api) == "web"
    assert resolve(api.container_id[:6], web, api) == "api"


@pytest.mark.parametrize("target", [".", "{folder}", "../web"])
def test_a_folder_is_its_running_container(folder: Path, target: str) -> None:
    old = info("old", "exited", **{LOCAL_FOLDER: str(folder)})
    new = info("new", **{LOCAL_FOLDER: str(folder)})
    assert resolve(target.format(folder=folder), old, new, info("other")) == "new"


def test_a_folder_reached_over_a_symbolic_link(folder: Path, tmp_path: Path) -> None:
    """The official CLI labels the path as it was given, devcontainer-rs the real one."""
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert resolve(str(link), info("real", **{LOCAL_FOLDER: str(folder)})) == "real"
    assert resolve(str(link), info("given", **{LOCAL_FOLDER: str(link)})) == "given"


def test_a_folder_by_another_path_than_its_label(folder: Path, tmp_path: Path) -> None:
    """Both ways: labelled by one link, named by another, or by the real path."""
    links = [tmp_path / "one", tmp_path / "two"]
    for link in links:
        link.symlink_to(folder)
    web = info("web", **{LOCAL_FOLDER: str(links[0])})
    assert resolve(str(folder), web) == resolve(str(links[1]), web) == "web"
    other = info("other", **{LOCAL_FOLDER: str(tmp_path)})
    assert "has no devcontainer.json" in str(refused(str(folder), other))


def test_a_link_that_a_container_can_have_made_leads_to_no_other_workspace(folder: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "evil"
    mounted.mkdir()
    (mounted / "sub").symlink_to(folder)
    evil = replace(info("evil", **{LOCAL_FOLDER: str(mounted / "sub")}), bind_sources=(str(mounted),))
    assert resolve(".", evil, info("web", **{LOCAL_FOLDER: str(folder)})) == "web"
    assert "has no devcontainer.json" in str(refused(str(folder), evil))
    assert resolve(str(mounted / "sub"), evil) == "evil", "as it is called"


def test_a_folder_in_the_workspace(folder: Path, tmp_path: Path) -> None:
    below = folder / "src" / "api"
    below.mkdir(parents=True)
    web, api = info("web", **{LOCAL_FOLDER: str(folder)}), info("api")
    assert "has no devcontainer.json" in str(refused(str(below), web)), "not in a git work tree"
    (folder / ".git").mkdir()
    said: list[str] = []
    engine = cast(Engine, Containers(web, api))
    assert resolve_target(engine, str(below), said.append).name == "web"
    assert said == [f"{folder} is used: {below} is in it"]
    # A name is meant before a folder above; a link into the workspace is in it; at most the top level of git.
    (folder / "api").mkdir()
    assert resolve("api", web, api) == "api"
    (tmp_path / "link").symlink_to(below)
    assert resolve(str(tmp_path / "link"), web) == "web"
    (below / ".git").write_text("gitdir: elsewhere")
    assert "has no devcontainer.json" in str(refused(str(below), web))


def test_of_several_configurations_one_has_to_be_chosen(folder: Path) -> None:
    def of(name: str) -> ContainerInfo:
        file = folder / ".devcontainer" / name / "devcontainer.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        return info(name, **{LOCAL_FOLDER: str(folder), "devcontainer.config_file": str(file)})

    (folder / ".git").mkdir()
    go, py = of("go"), of("py")
    with pytest.raises(UsageError, match=r"several configurations, and dev containers of them run: go \(.*py \("):
        resolve(".", go, py)
    assert resolve(".devcontainer/py", go, py) == "py"
    assert resolve(".", replace(go, state="exited"), py) == "py"
    error = refused(".")
    assert error.hint is not None
    assert "--config FILE` (FILE is " in error.hint


OF_SHOP = "com.docker.compose.project"


def of_project(name: str, project: str, folder: str, **labels: str) -> ContainerInfo:
    compose = {OF_SHOP: project, f"{OF_SHOP}.working_dir": folder, "com.docker.compose.service": name.split("-")[-1]}
    return info(name, **compose, **labels)


def test_a_project_by_what_its_folder_is_called(tmp_path: Path) -> None:
    """As the CLIs call it: `shop_devcontainer`."""
    app = of_project("x-app", "shop_devcontainer", "/src/shop/.devcontainer", **{LOCAL_FOLDER: "/src/shop"})
    db = of_project("x-db", "shop_devcontainer", "/src/shop/.devcontainer")
    assert resolve("shop/db", app, db) == resolve("shop_devcontainer/db", app, db) == "x-db"
    said: list[str] = []
    engine = cast(Engine, Containers(db, app))
    assert [one.name for one in resolve_project(engine, "shop", said.append)] == ["x-app", "x-db"]
    assert said == ["shop is compose project shop_devcontainer of /src/shop/.devcontainer"]
    # The name comes first; two of one folder's name have to be told apart, by their folders.
    named = of_project("y-db", "shop", "/other")
    assert resolve("shop/db", app, db, named) == "y-db"
    (tmp_path / "shop").mkdir()
    second = of_project("z-db", "shop_dev", str(tmp_path / "shop"))
    with pytest.raises(UsageError, match="shop/db is several compose projects: shop_devcontainer of /src/shop"):
        resolve("shop/db", app, db, second)
    engine = cast(Engine, Containers(app, db, second))
    with pytest.raises(UsageError, match="shop is several compose projects"):
        resolve_project(engine, "shop")
    assert [one.name for one in resolve_project(engine, str(tmp_path / "shop"))] == ["z-db"]
    assert resolve(f"{tmp_path}/shop/db", app, db, second) == "z-db"
    same = of_project("w-db", "shop_dev", "/somewhere/else")
    with pytest.raises(UsageError, match="shop_dev/db is several compose projects"):
        resolve("shop_dev/db", second, same)


def test_the_nearest_projects_and_services() -> None:
    app = of_project("x-app", "shop", "/src/store")
    assert refused("shpo/app", app).hint == "did you mean shop/app?"
    with pytest.raises(TargetError) as caught:
        resolve_project(cast(Engine, Containers(app)), "sho")
    assert caught.value.hint == "did you mean shop/*?"


def test_a_folder_comes_before_a_container_of_that_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    labelled = info("labelled", **{LOCAL_FOLDER: str(folder)})
    assert resolve("web", info("web"), labelled) == "labelled"


def test_a_folder_that_is_no_dev_containers_does_not_hide_a_container(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve("web", info("web")) == "web"
    configure(folder)
    error = refused("web", info("web"))
    assert str(folder) in str(error)


def test_a_folder_whose_container_does_not_run_says_how_to_start_it(folder: Path) -> None:
    configure(folder)
    error = refused(".")
    assert f"no dev container of {folder} is running" in str(error)
    assert error.hint == "start it with `devup --auto-forward --workspace-folder .`"
    error = refused(".", info("web-1", "exited", **{LOCAL_FOLDER: str(folder)}))
    assert "container web-1 is exited" in str(error)


def test_a_folder_that_an_image_claims_is_not_that_container(folder: Path) -> None:
    assert resolve(".", info("web", **{LOCAL_FOLDER: str(folder)}), info("claims-it")) == "web"
    assert "has no devcontainer.json" in str(refused(".", info("claims-it")))
    configure(folder)
    error = refused(".", info("claims-it"))
    assert str(error).endswith("; container claims-it has that label from its image, which does not count")


def test_container_of_compose_run_is_no_instance(folder: Path) -> None:
    one_off = {"com.docker.compose.oneoff": "True"}
    app, job = of_service("shop-app-1", "app", 1), of_service("shop-app-run-1", "app", 1)
    job = replace(job, labels={**job.labels, **one_off})
    assert resolve("shop/app", job, app) == resolve("shop/app#1", job, app) == "shop-app-1"
    assert "no container, service" in str(refused("shop/app", job))
    dev = info("dev", **{LOCAL_FOLDER: str(folder)})
    run = info("run", **{LOCAL_FOLDER: str(folder), **one_off})
    assert resolve(".", dev, run) == "dev"
    assert resolve(".", run) == "run"


def test_a_folder_that_is_none_of_a_dev_container(folder: Path) -> None:
    error = refused(".", info("web"))
    assert str(error) == f"{folder} has no devcontainer.json, and no container has a label of its own with it"
    assert error.hint == "name a container: `docker ps` lists them"
    assert "has no devcontainer.json" in str(refused(str(folder)))
    assert "has no devcontainer.json" in str(refused(".."))


@pytest.mark.parametrize("state", ["exited", "paused", "created"])
def test_a_container_that_does_not_run_says_how_to_start_it(state: str) -> None:
    error = refused("web", info("web", state))
    assert str(error) == f"container web is not running (it is {state})"
    expected = "docker unpause web" if state == "paused" else "docker start web"
    assert expected in (error.hint or "")


def test_services() -> None:
    shop = [
        of_service("shop-api-1", "api", 1, "exited"),
        of_service("shop-api-3", "api", 3),
        of_service("shop-api-2", "api", 2),
        of_service("shop-db-1", "db", 1),
    ]
    assert resolve("shop/api", *shop) == "shop-api-2", "the first that runs"
    assert resolve("shop/api#3", *shop) == "shop-api-3"
    assert resolve("shop/db", *shop) == "shop-db-1"
    assert "shop-api-1 is not running" in str(refused("shop/api#1", *shop))
    for target in ("shop/api#9", "shop/nope", "other/api", "shop/api#", "shop/", "/api", "a/b/c"):
        assert target in str(refused(target, *shop))


@pytest.mark.parametrize(
    ("target", "names", "hint"),
    [
        ("wbe", ["web", "db"], "did you mean web?"),
        ("shop-ap", ["shop-api-1", "shop-api-2"], "did you mean shop-api-2 or shop-api-1?"),
        ("zzz", ["web"], "`docker ps` lists the containers"),
        ("zzz", [], "no container exists on this engine"),
    ],
)
def test_the_nearest_names(target: str, names: list[str], hint: str) -> None:
    error: Any = refused(target, *map(info, names))
    assert error.hint == hint


def test_an_empty_name_is_nobodys() -> None:
    assert str(refused("", info("web")))
