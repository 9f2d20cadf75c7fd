pytest_plugins = ("pytester", "tests.chapters", "tests.workers")
