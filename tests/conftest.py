"""Order of the tests."""


def pytest_collection_modifyitems(items):
    """The whole chain first: it is the longest test, and on several cores the others run beside it."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")
