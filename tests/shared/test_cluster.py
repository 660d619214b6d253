"""Reading the cluster: whose a pod is."""

from kreflex.views import Ref
from tests.values import CART_DEPLOYMENT, CART_SET, CannedApi, a_workload, objects, the_pod, the_workload


async def test_the_top_owner_is_the_last_in_the_row_of_controllers() -> None:
    api = CannedApi(objects(a_workload(), a_workload(CART_SET, owner=CART_DEPLOYMENT)))
    assert await api.world().cluster.top_owner(the_pod()) == the_workload()
    assert await api.world().cluster.top_owner(the_pod(owner=None)) is None


async def test_owners_that_name_each_other_come_to_an_end() -> None:
    api = CannedApi(objects(a_workload(owner=CART_SET), a_workload(CART_SET, owner=CART_DEPLOYMENT)))
    found = await api.world().cluster.top_owner(the_pod())
    assert found is not None
    assert found.ref in {CART_DEPLOYMENT, CART_SET}


def test_tells_which_kinds_it_can_read() -> None:
    cluster = CannedApi().world().cluster
    assert cluster.knows(CART_DEPLOYMENT)
    assert not cluster.knows(Ref("x/v1", "Machine", "shop", "cart", "uid-cart"))
