"""PromQL that the dashboard's panels share: rates, means and quantiles over the replicas and tasks that are chosen.

Owns: how the dashboard's variables stand in expressions. Must not know: any panel.
"""

from __future__ import annotations

from typing import Final

ON: Final = 'namespace=~"$namespace",instance=~"$instance"'
TASK: Final = f'{ON},task=~"$task"'
CLASSIFY: Final = f'{ON},route="/classify"'
RATE: Final = "[$__rate_interval]"


def rate(name: str, labels: str = ON, by: str = "") -> str:
    """Per second, over all chosen replicas."""
    each = f"by ({by}) " if by else ""
    return f"sum {each}(rate({name}{{{labels}}}{RATE}))"


def mean(name: str, labels: str = ON) -> str:
    """The mean observation of a histogram."""
    return f"{rate(name + '_sum', labels)} / {rate(name + '_count', labels)}"


def quantile(share: float, name: str, labels: str = ON) -> str:
    """A quantile of a histogram over all chosen replicas."""
    return f"histogram_quantile({share}, {rate(name + '_bucket', labels, 'le')})"


def share_of(status: str) -> str:
    """Of the answers to /classify; 0 where there are none of the kind, nothing where there are none at all."""
    asked = rate("promptmux_http_requests_total", CLASSIFY)
    these = rate("promptmux_http_requests_total", f'{CLASSIFY},status=~"{status}"')
    return f"({these} or 0 * {asked}) / {asked}"
