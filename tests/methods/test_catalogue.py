import itertools
import re
import subprocess
import sys
from typing import get_args

from pipeline.methods.catalogue import METHODS, refusal
from stages.config.file import with_overrides
from stages.config.root import Config
from stages.config.training import MethodName, TrainStudentConfig
from tests.support.cases import looped

every_method = looped("method", METHODS.values())
NO_OBSTACLE = {
    "has_features": True,
    "is_sparse": False,
    "temperature": 4.0,
    "standardised": False,
}


def test_the_catalogue_loads_without_torch():
    code = "import sys, pipeline.methods.catalogue; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_catalogue_has_the_methods_that_can_be_configured():
    assert tuple(METHODS) == get_args(MethodName)


@every_method
def test_a_method_has_the_settings_of_its_own_table(method):
    assert METHODS[method.name] is method
    table = TrainStudentConfig(method=method.name).method_settings
    assert method.settings == (() if table is None else tuple(type(table).model_fields))


@every_method
def test_a_method_distils_either_logits_or_features(method):
    assert method.needs_features == (method.kind == "features")
    assert (method.lambda_feature > 0) == method.needs_features
    assert (method.lambda_kd > 0) != method.needs_features
    assert method.lambda_ce >= 0


@every_method
def test_a_method_names_its_paper_and_what_it_does_in_one_line(method):
    assert re.fullmatch(r"[A-Z][\w ]+ (et al\. |and \w+ )?20[12]\d", method.paper)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", method.arxiv) or method.name == "mlkd"
    assert re.fullmatch(r"[A-Z][^.\n]+\.", method.description)
    assert method.title.isascii()
    assert "\n" not in method.title


def test_no_two_methods_share_a_paper():
    papers = {(method.paper, method.arxiv, method.title) for method in METHODS.values()}
    assert len(papers) == len({arxiv for _, arxiv, _ in papers}) == len(METHODS)


@every_method
def test_a_dense_cache_with_features_serves_every_method(method):
    assert refusal(method.name, **NO_OBSTACLE) is None


@every_method
def test_a_cache_without_features_serves_the_methods_of_logits(method):
    reason = refusal(method.name, **NO_OBSTACLE | {"has_features": False})
    assert (reason is not None) == method.needs_features


@every_method
@looped("temperature", [1.0, 4.0])
def test_a_top_k_cache_serves_what_the_listed_classes_are_enough_for(method, temperature):
    served = {"kd", "dkd", "fitnet", "rkd", "pkt", "sp", "cc", "crd", "simkd"}
    if temperature == 1.0:
        served.add("nkd")
    reason = refusal(method.name, **NO_OBSTACLE | {"is_sparse": True, "temperature": temperature})
    assert (reason is None) == (method.name in served)
    assert reason is None or method.sparse in reason


@every_method
@looped("is_sparse", [False, True])
def test_standardised_labels_serve_kd_and_dkd_where_all_logits_are_there(method, is_sparse):
    reason = refusal(method.name, **NO_OBSTACLE | {"is_sparse": is_sparse, "standardised": True})
    assert (reason is None) == (method.name in {"kd", "dkd"} and not is_sparse)


def test_every_rejection_is_one_line_of_what_to_set_and_that_can_be_set():
    situations = itertools.product(METHODS, [False, True], [False, True], [1.0, 4.0], [False, True])
    reasons = {
        refusal(name, has_features=known, is_sparse=few, temperature=tau, standardised=z_scored)
        for name, known, few, tau, z_scored in situations
    } - {None}
    assert len(reasons) > len(METHODS)
    for reason in reasons:
        assert re.fullmatch(r"[a-z][^\n]+\.", reason)
        advice = re.findall(r"`([a-z_]+\.[a-z_]+) = (\w+)`", reason)
        assert advice
        for key, value in advice:
            with_overrides(Config(), [f"{key}={value}"])
