"""Numbers that are set to 0 in Git's files, of which all else stays as it was."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kreflex.actions import BlockedError, HopelessError
from kreflex.edits import Edit, Number, Place, editing, without
from kreflex.git import Access, cloned
from kreflex.gitops import Manager
from kreflex.views import JSON, Ref
from lab import git

RECORD, WEIGHT = "shop/canary-aborter-cart-1a2b3c4d", "nginx.ingress.kubernetes.io/canary-weight"
INGRESS = Ref("networking.k8s.io/v1", "Ingress", "shop", "cart-canary", "uid-ingress")
ROUTE = Ref("gateway.networking.k8s.io/v1", "HTTPRoute", "shop", "cart", "uid-route")
CART = Ref("apps/v1", "Deployment", "shop", "cart-canary", "uid-cart")
BY = Manager(Ref("argoproj.io/v1alpha1", "Application", "argocd", "shop", "uid-app"), paths=("shop",))
ANNOTATION: Place = ("metadata", "annotations", WEIGHT)
SECOND: Place = ("spec", "rules", 0, "backendRefs", 1, "weight")

# Aliases of aliases, each ten times.
BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))])


def the_weight(ref: Ref = INGRESS, place: Place = ANNOTATION, entry: JSON | None = None) -> Number:
    return Number(ref, BY, place, 10, entry or {})


def an_ingress(weight: str = '"10"', name: str = "cart-canary", more: str = "") -> str:
    return f"""# The canary.
apiVersion: networking.k8s.io/v1
kind:   Ingress
metadata:
    name: {name}
    annotations:
        {WEIGHT}: {weight}   # a tenth
{more}"""


def a_route(canary: str = "{name: cart-canary, weight: 10, port: 80}") -> str:
    return f"""apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: cart, namespace: shop}}
spec:
  rules:
  - backendRefs: [{{name: cart, weight: 90, port: 80}}, {canary}]
"""


def edited(text: str, number: Number) -> str:
    return without(text.encode(), number)[0].decode()


# One file


@pytest.mark.parametrize(("before", "after"), [('"10"', '"0"'), ("'10'", "'0'")])
def test_only_the_number_changes_and_keeps_its_quotes(before: str, after: str) -> None:
    assert without(an_ingress(before).encode(), the_weight()) == (an_ingress(after).encode(), "10")


def test_what_a_line_ends_with_and_what_else_is_in_the_file_stays(tmp_path: Path) -> None:
    before = ("# Zwölf Körbe\n---\n" + a_route() + "---\n" + an_ingress()).replace("\n", "\r\n")
    assert edited(before, the_weight()) == before.replace('"10"', '"0"')


def test_of_a_route_the_backend_of_that_place_gets_nothing_and_a_list_is_looked_into() -> None:
    number = the_weight(ROUTE, SECOND, {"name": "cart-canary"})
    assert edited(a_route(), number) == a_route("{name: cart-canary, weight: 0, port: 80}")
    inner = "".join(f"  {line}\n" for line in a_route().splitlines())
    listed = "apiVersion: v1\nkind: List\nitems:\n-" + inner[1:]
    assert edited(listed, number) == listed.replace("weight: 10", "weight: 0")


@pytest.mark.parametrize(
    ("text", "number", "why"),
    [
        (an_ingress("${WEIGHT}"), the_weight(), "written as ${WEIGHT} in Git, and not as a number"),
        (an_ingress("&w '10'"), the_weight(), "and not as a number"),
        (an_ingress() + "---\n" + an_ingress(), the_weight(), "is 2 times in its file"),
        (a_route("{name: cart-canary}"), the_weight(ROUTE, SECOND, {"name": "cart-canary"}), "does not say"),
        (a_route(), the_weight(ROUTE, SECOND, {"name": "another"}), "something else in Git than in the cluster"),
        (
            a_route("&b {name: cart-canary, weight: 10}") + "  - backendRefs: [*b]\n",
            the_weight(ROUTE, SECOND, {"name": "cart-canary"}),
            "can't be changed in its file by itself",
        ),
        (an_ingress(more="#" * 1_000_000), the_weight(), "has more than 1000000 characters"),
        (an_ingress(more=BOMB), the_weight(), "is too large once it is read"),
    ],
)
def test_what_can_not_be_changed_by_itself_is_left_to_people(text: str, number: Number, why: str) -> None:
    with pytest.raises(HopelessError) as refused:
        edited(text, number)
    assert why in str(refused.value)


# A repository


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[git.Repository]:
    async with git.serving(tmp_path, git.Account("kreflex", "secret")) as server:
        yield await server.make("team/shop", {"shop/cart.yaml": an_ingress(), "shop/route.yaml": a_route()})


async def planned(repository: git.Repository, *numbers: Number, applied: str = "") -> tuple[Edit, dict[str, str]]:
    """Plan it for what was applied, the newest by default; and the files as they would be."""
    by = replace(BY, applied=applied or (await repository.branches())["main"])
    end = asyncio.get_running_loop().time() + 20
    async with cloned(repository.url, "main", Access("kreflex", "secret"), end) as clone:
        edit = await editing(clone, [replace(one, by=by) for one in numbers or (the_weight(),)], RECORD)
        changed = await clone.changed(clone.head, edit.tree) if edit.tree else ()
        return edit, {name: (await clone.content(edit.tree, name)).decode() for name in changed}


async def refused(asking: Any) -> str:
    with pytest.raises(HopelessError) as told:
        await asking
    return str(told.value)


async def test_all_numbers_go_into_one_tree(repository: git.Repository) -> None:
    edit, files = await planned(repository, the_weight(), the_weight(ROUTE, SECOND, {"name": "cart-canary"}))
    assert files == {
        "shop/cart.yaml": an_ingress('"0"'),
        "shop/route.yaml": a_route("{name: cart-canary, weight: 0, port: 80}"),
    }
    assert edit.changes == (
        f"shop/cart.yaml: metadata.annotations.{WEIGHT} of Ingress shop/cart-canary was 10",
        "shop/route.yaml: spec.rules[0].backendRefs[1].weight of HTTPRoute shop/cart was 10",
    )


async def test_what_is_done_already_is_not_done_again(repository: git.Repository) -> None:
    await repository.commit("By hand", {"shop/cart.yaml": an_ingress('"0"')})
    edit, _ = await planned(repository)
    assert edit.done == f"main of {repository.url} says 0 already"
    mine = await repository.commit(f"Ours\n\nKreflex-Record: {RECORD}", {"shop/cart.yaml": an_ingress()})
    edit, _ = await planned(repository)
    assert edit.done == f"{mine[:12]} is in main of {repository.url} already"


async def test_somebody_who_changes_the_same_file_is_waited_for(repository: git.Repository) -> None:
    before = (await repository.branches())["main"]
    await repository.commit("Another file", {"shop/route.yaml": a_route("{name: cart-canary, weight: 20, port: 80}")})
    assert (await planned(repository, applied=before))[0].changes != ()
    await repository.commit("More of it", {"shop/cart.yaml": an_ingress('"20"')})
    with pytest.raises(BlockedError, match=r"More of it \(Lab\) has changed shop/cart\.yaml"):
        await planned(repository, applied=before)


async def test_a_kustomization_that_only_lists_its_files_is_read_as_they_are(repository: git.Repository) -> None:
    listing = "resources: [../base]\nnamespace: shop\nimages: [{name: cart, newTag: '2'}]\n"
    base = {"base/kustomization.yaml": "resources: [cart.yaml]\n", "base/cart.yaml": an_ingress()}
    moved = {"shop/cart.yaml": None, "shop/kustomization.yaml": listing, **base}
    await repository.commit("Kustomize", moved)
    assert (await planned(repository))[1] == {"base/cart.yaml": an_ingress('"0"')}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"shop/kustomization.yaml": "patches: []\nnamePrefix: a-\n"}, "has namePrefix, patches, so that the files"),
        ({"shop/Chart.yaml": "name: cart\n"}, "shop/Chart.yaml renders what is applied"),
        ({"shop/cart.yaml": an_ingress(name="another")}, "no file of what Application argocd/shop brings has"),
        ({"shop/again.yaml": an_ingress()}, "2 files of what Application argocd/shop brings has"),
    ],
)
async def test_what_is_rendered_or_can_not_be_found_is_left_to_people(
    repository: git.Repository, files: dict[str, str], why: str
) -> None:
    await repository.commit("Otherwise", files)
    assert why in await refused(planned(repository))


async def test_a_revision_that_is_not_in_the_branch_is_told(repository: git.Repository) -> None:
    assert "the branch was rewritten" in await refused(planned(repository, applied="0" * 40))
