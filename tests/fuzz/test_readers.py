"""The seeded short version of the fuzz run (`make fuzz`, docs/fuzz-log.md)."""

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.files import any_file
from fuzz.targets import TARGETS, read_or_refuse


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_is_read_or_refused(name):
    @settings(max_examples=25, deadline=5000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(any_file(name))
    def check(content):
        read_or_refuse(name, content)

    check()
