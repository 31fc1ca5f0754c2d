"""A short campaign: an actor, backends, replies and PostgreSQL fail while clients go on; ``make faults`` is long."""

from __future__ import annotations

import pytest

from tests.faults.campaign import running_campaign
from tests.faults.nemeses import SHORT
from tests.faults.servers import running_cluster

SEED = 20_26
COMMANDS_MIN = 300
RECOVERED_S = 30.0
"""Far more than it takes; how long it does take ``make faults`` tells, on a machine with nothing else to do."""


@pytest.mark.timeout(180)
async def test_faults_one_after_another_break_no_rule() -> None:
    async with (
        running_cluster(nodes=0, apis=1) as cluster,
        running_campaign(cluster, SEED, clients=16, doctors=4) as campaign,
    ):
        for nemesis in SHORT:
            line = await campaign.fault(nemesis)
            assert line.all_s is not None, f"{nemesis.name}: not every calendar answers again"
            assert line.all_s < RECOVERED_S, nemesis.name
        await campaign.finish()

        if campaign.violations:
            pytest.fail("\n".join([*campaign.violations, f"the history is in {campaign.leave_evidence()}"]))
        assert cluster.postgres_proxy.swallowed > 0
        assert len(campaign.history.operations) > COMMANDS_MIN
        assert all(watcher.messages for watcher in campaign.watchers), "somebody saw nothing"
        assert all(operation.told for operation in campaign.history.operations), "who asks again is told in the end"
