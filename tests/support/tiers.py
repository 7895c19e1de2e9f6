"""What `make test` leaves out besides the tests marked `full`: cases of long lists, and examples."""

from hypothesis import settings


def is_whole():
    """Whether this is `make test-all`; the profile says so."""
    return settings.get_current_profile_name() == "full"


def examples(count):
    """So many examples in `make test-all`, and an eighth of them in `make test`."""
    return settings(max_examples=count if is_whole() else max(5, count // 8))


def leave_out(items, mark):
    """Marks all but some cases, evenly spaced, of each test that is marked `few(number)`.

    Args:
        items: what pytest has collected; a test of which only one case was asked for keeps it.
        mark: given to the other cases.
    """
    cases = {}
    for item in items:
        if item.get_closest_marker("few"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for several in cases.values():
        (number,) = several[0].get_closest_marker("few").args
        kept = {round((i + 0.5) * len(several) / number - 0.5) for i in range(min(number, len(several)))}
        for i, item in enumerate(several):
            if i not in kept:
                item.add_marker(mark)
