"""What the settings refuse."""

import pytest
from pydantic import ValidationError

from transfuse.inject.pair_settings import PairSettings


@pytest.mark.parametrize(
    "settings",
    [{"reverse_share": 1.0}, {"unknown_share": -0.1}, {"top_p": 0}, {"max_rounds": 0}, {"share": 0.5}],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        PairSettings(**settings)
