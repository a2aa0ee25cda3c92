"""A writer and an encoder, as the tests of evaluation have them."""

from tests.evaluation.conftest import models as models
