from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings

import pytest

from mgf.common import AppContext, app_name, app_version, bootstrap, current_context


def test_bootstrap_sets_the_identity_until_its_block_ends() -> None:
    with bootstrap("shop", "1.2") as context:
        assert (app_name(), app_version()) == ("shop", "1.2")
        assert current_context() is context
    assert current_context() is None


def test_bootstrap_holds_without_a_block() -> None:
    context = bootstrap("shop", "1.2")
    try:
        assert app_name() == "shop"
    finally:
        context.__exit__(None, None, None)
    assert current_context() is None


def test_leaving_restores_what_was_before() -> None:
    with bootstrap("outer"):
        with bootstrap("inner"):
            assert app_name() == "inner"
        assert app_name() == "outer"


def test_leaving_late_does_not_undo_a_later_bootstrap() -> None:
    first = bootstrap("first")
    with bootstrap("second"):
        first.__exit__(None, None, None)
        assert app_name() == "second"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first.__exit__(None, None, None)
    assert current_context() is None


def test_what_is_left_out_is_a_placeholder() -> None:
    with bootstrap():
        assert (app_name(), app_version()) == ("app", "unknown")


def test_a_context_of_ones_own_holds_for_its_block() -> None:
    with bootstrap("shop", "1.2"):
        with AppContext("plugin", "1.0") as plugin:
            assert (app_name(), app_version()) == ("plugin", "1.0")
            assert current_context() is plugin
        assert app_name() == "shop"


def test_a_context_may_be_entered_inside_its_own_block() -> None:
    plugin = AppContext("plugin", "1.0")
    with plugin, plugin:
        assert app_name() == "plugin"
    assert current_context() is None


async def test_a_context_holds_for_its_task_alone() -> None:
    async def other_task() -> str:
        await asyncio.sleep(0)
        return app_name()

    with bootstrap("shop"):
        other = asyncio.create_task(other_task())
        with AppContext("plugin", "1.0"):
            assert await other == "shop"
            assert await asyncio.create_task(other_task()) == "plugin"


def test_contexts_are_equal_by_what_they_say() -> None:
    assert AppContext("shop", "1.0") == AppContext("shop", "1.0")
    assert repr(AppContext("shop", "1.0")) == "AppContext(app_name='shop', app_version='1.0')"


@pytest.mark.parametrize("read", ["app_name", "app_version"])
def test_without_an_identity_one_warning_per_process(read: str) -> None:
    program = (
        "import warnings, mgf.common as c\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    values = c.{read}(), c.app_name(), c.app_version()\n"
        "names = [one.category.__name__ for one in caught]\n"
        "print(values, names, 'bootstrap' in str(caught[0].message))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    first = {"app_name": "app", "app_version": "unknown"}[read]
    assert result.stdout.strip() == f"{(first, 'app', 'unknown')} ['UnconfiguredWarning'] True"


async def test_one_context_may_be_entered_by_several_tasks() -> None:
    plugin = AppContext("plugin", "1.0")

    async def enter(before: int, inside: int) -> str:
        for _ in range(before):
            await asyncio.sleep(0)
        with plugin:
            for _ in range(inside):
                await asyncio.sleep(0)
            return app_name()

    assert list(await asyncio.gather(enter(0, 3), enter(1, 5))) == ["plugin", "plugin"]
    assert current_context() is None
