pytest_plugins = ("pytester", "tests.chapters")
