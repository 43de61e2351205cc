"""One price for one model: what was spent is counted by the config's prices, else the table's, and unknown is said."""

import pytest
from config_builder import make_config

from medssr_dist.config.price_table import describe_cost
from medssr_dist.synthesis.client.budget import Spending


@pytest.mark.parametrize(
    ("model", "prices", "usd"),
    [
        ("gpt-4.1", {}, 2.0 + 8.0),  # of the table
        ("gpt-4.1", {"gpt-4.1": {"prompt": 1.0, "completion": 3.0}}, 1.0 + 3.0),
        ("openai/gpt-4.1", {}, 2.0 + 8.0),
        ("offline-teacher", {}, 0.0),
    ],
)
def test_spending_has_the_price_of_the_plan(model, prices, usd):
    synthesis = make_config(synthesis={"prices": prices}).synthesis
    spending = Spending(synthesis)
    spending.count(model, 10**6, 10**6)
    assert spending.usd == pytest.approx(usd) and not spending.unpriced
    assert describe_cost(synthesis, [model], 10**6, 10**6).startswith(f"${usd:,.2f} ({model}: ")


def test_a_model_without_a_price_is_named():
    spending = Spending(make_config().synthesis)
    spending.count("my-model", 10**6, 10**6)
    assert spending.unpriced == {"my-model"} and spending.usd == 0
