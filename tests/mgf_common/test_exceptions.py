from __future__ import annotations

import pytest

from mgf.common.exceptions import AppConfigError, AppError, ConfigError, OperationError


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        (AppError, Exception),
        (ConfigError, AppError),
        (AppConfigError, ConfigError),
        (OperationError, AppError),
    ],
)
def test_the_tree_is_the_one_that_is_drawn(child: type[Exception], parent: type[Exception]) -> None:
    assert child.__bases__ == (parent,)
