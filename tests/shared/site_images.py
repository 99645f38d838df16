"""What tests of a site's images ask of a data set."""

from dpfpl_client.data import DataSettings, read_pool


def pool_of(folder, **settings):
    """A folder, read and split."""
    return read_pool(DataSettings("folder", str(folder), **settings))


def messages(data, code):
    """What the problems of this code say."""
    return [problem.message for problem in data.problems if problem.code == code]


def only(data, code):
    """What the one problem of this code says."""
    (message,) = messages(data, code)
    return message


def codes(data):
    """The codes of all problems, in order."""
    return [problem.code for problem in data.problems]
