"""Which addresses of repositories are read, and which a policy means."""

import pytest

from kreflex.addresses import Address, address_of, shown
from kreflex.releases import Git

ORG = Address("https", "git.example", ("org",))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://git.example/org/shop.git", Address("https", "git.example", ("org", "shop"))),
        ("https://me@Git.Example:8443/org/shop/", Address("https", "git.example:8443", ("org", "shop"))),
        ("ssh://git@git.example:2222/org/shop", Address("ssh", "git@git.example:2222", ("org", "shop"))),
        ("git@git.example:org/shop.git", Address("ssh", "git@git.example", ("org", "shop"))),
        (
            "https://dev.example/org/Our%20shop/_git/x",
            Address("https", "dev.example", ("org", "Our%20shop", "_git", "x")),
        ),
        ("https://git.example", Address("https", "git.example", ())),
    ],
)
def test_an_address_has_a_scheme_a_host_and_parts(url: str, address: Address) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file:///etc",
        "ext::sh -c id",
        "/srv/shop.git",
        "--upload-pack=x",
        "-oProxyCommand=id@git.example:org/shop",
        "ssh://-oProxyCommand=id/org/shop",
        "https://git.example/org/../other/shop",
        "https://git.example/org/%2E%2e/other/shop",
        "https://git.example/org%2fother/shop",
        "https://git.example/org//shop",
        "https://git.example/org\\..\\other",
        "https://git.example/org/shop?x=/org2",
        "https://git.example/org/shop#x",
        "https://me:secret@git.example/org/shop",
        "https://git.example/org/shop\n",
        "https://git.example/org/shop\0",
        "git@git.example:../user/repos?name=x",
        "oci://git.example/org/shop",
    ],
)
def test_what_hides_something_or_goes_up_is_no_address(url: str) -> None:
    assert address_of(url) is None


@pytest.mark.parametrize(
    ("url", "below"),
    [
        ("https://git.example/org/shop", True),
        ("https://git.example/org", True),
        ("https://git.example/org-of-others/shop", False),
        ("https://git.example.evil.example/org/shop", False),
        ("https://git.example@evil.example/org/shop", False),
        ("http://git.example/org/shop", False),
        ("https://git.example:8443/org/shop", False),
        ("https://git.example/", False),
    ],
)
def test_an_address_is_below_another_by_whole_parts(url: str, below: bool) -> None:
    address = address_of(url)
    assert address is not None
    assert address.below(ORG) == below


def test_who_logs_in_is_not_shown() -> None:
    assert shown("https://ghp_1:x@y@git.example/org/shop") == "https://git.example/org/shop"
    assert shown("oci://me:secret@registry.example/shop") == "oci://registry.example/shop"
    assert shown("ssh://git@git.example/org/shop") == "ssh://git@git.example/org/shop"
    assert shown("git@git.example:org/shop") == "git@git.example:org/shop"


def test_credentials_are_for_the_repositories_that_are_named() -> None:
    rules = Git(secret="git", repositories=("https://git.example/org", "git@git.example:team/shop"))
    for url in ("https://git.example/org/shop.git", "git@git.example:team/shop.git"):
        assert rules.refuses(url) == ""
    for url in ("https://git.example/organs/shop", "https://evil.example/org/shop", "git@git.example:team/shop2", ""):
        assert f"does not name {url}" in rules.refuses(url)
    assert "does not name" in Git(secret="git").refuses("https://git.example/org/shop")


@pytest.mark.parametrize("address", ["", "https://me:secret@git.example/org", "https://git.example/org/../x", "*"])
def test_what_names_no_repositories_is_no_policy(address: str) -> None:
    with pytest.raises(ValueError, match="is no address over https, http or ssh without a password"):
        Git(repositories=(address,))
