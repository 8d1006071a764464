"""A table made from the one before is the table made of everything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.registry.tables import TableBuilder

KEYS = [ServiceKey(uri, group) for uri in ("/a", "/b") for group in ("*", "g")]
INSTANCES = [Instance(Address("10.0.0.1", n), weight=w) for n in (1, 2, 3) for w in (1, 2)]

sets = st.lists(st.sampled_from(INSTANCES), max_size=3, unique_by=lambda i: i.address).map(tuple)
steps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(KEYS), sets, max_size=3),
        st.lists(st.sampled_from(KEYS), max_size=2, unique=True),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(steps)
def test_every_step_gives_what_a_whole_build_gives(
    changes: list[tuple[dict[ServiceKey, tuple[Instance, ...]], list[ServiceKey]]],
) -> None:
    builder = TableBuilder()
    whole: dict[ServiceKey, tuple[Instance, ...]] = {}
    for changed, gone in changes:
        before = builder.table
        frozen = dict(before.instances_by_key)
        whole.update(changed)
        for key in gone:
            whole.pop(key, None)
        assert builder.replace(changed, gone) == ServiceTable.build(whole)
        assert dict(before.instances_by_key) == frozen, "an older table stays as it was"


def test_what_has_not_changed_is_the_same_object() -> None:
    builder = TableBuilder()
    first = builder.replace({KEYS[0]: (INSTANCES[0],), KEYS[2]: (INSTANCES[2],)})
    second = builder.replace({KEYS[0]: (INSTANCES[1],)})
    assert second.instances(KEYS[0]) == (INSTANCES[1],)
    assert second.addresses is first.addresses
    assert second.uris is first.uris
