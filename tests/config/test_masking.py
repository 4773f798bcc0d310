"""Secrets in addresses and messages: a list of forms, each with its secret in it."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from delta_tune.config import UserError, mask_secrets, study_config

SECRET = "SEKRET"
FORMS = [
    "s3://AKIA:SEKRET@bucket/folder",
    "s3://AKIA:SEK/SEKRET@bucket/folder",
    "s3://AKIA:123/SEKRET@bucket/folder",
    "gs://SEKRET@bucket",
    "http://SEKRET@host:5000",
    "https://SEKRET:x-oauth-basic@github.com/a",
    "https://me:SEKRET@host",
    "https://me:a@SEKRET@host/b",
    "http://me:5000SEKRET@host",
    "redis://:SEKRET@host",
    "foo+bar://u:SEKRET?x@host",
    "postgresql://me:SEKRET@host/db",
    "POSTGRESQL+psycopg2://me:SEKRET@host/db",
    "jdbc:postgresql://me:SEKRET@host/db",
    "postgresql://me%3ASEKRET@host/db",
    "postgresql://host/db?user=me&password=SEKRET",
    "postgresql://host/db?sslpassword=SEKRET",
    "postgresql://host/db?p%61ssword=SEKRET",
    "postgresql://me:SEKRET@host/db?p%61ssword=SEKRET",
    "postgresql://host/db?password='SEK SEKRET'",
    "mysql+pymysql://host/db?passwd=SEKRET",
    "mssql+pyodbc:///?odbc_connect=" + quote("DRIVER={x};UID=me;PWD=SEKRET;"),
    "mssql+pyodbc:///?odbc_connect=" + quote(quote("DRIVER={x};PWD=SEKRET;")),
    "host=h user=me password=SEKRET",
    "host=h password = SEKRET",
    "me:SEKRET@host",
    "sqlite:///m.db?password=SEKRET",
    "http://host/?access_token=SEKRET",
    "http://host/#access_token=SEKRET",
    "http://host/?api_key=SEKRET",
    "http://host/?apikey=SEKRET&x=1",
    "http://host/?key=SEKRET",
    "http://host/?a=1;client_secret=SEKRET",
    "https://bucket.s3.amazonaws.com/a?X-Amz-Credential=SEKRET%2F1&X-Amz-Signature=SEKRET",
    "https://bucket.s3.amazonaws.com/a?X-Amz-Security-Token=SEKRET",
    "https://bucket.s3.amazonaws.com/a?AWSAccessKeyId=SEKRET&Signature=SEKRET",
    "https://account.blob.core.windows.net/c?sv=1&sig=SEKRET",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=SEKRET==;EndpointSuffix=b",
    "AWS_SECRET_ACCESS_KEY=SEKRET",
]
GOOD = [
    "s3://bucket/a@b",
    "s3://bucket/a:b@c",
    "s3://bucket/folder?region=eu&endpoint_override=localhost:9000",
    "gs://bucket?retry_limit_seconds=3",
    "abfs://container@account.dfs.core.windows.net/folder",
    "http://host:5000",
    "http://host:5000/a@b",
    "http://[::1]:5000/a@b",
    "http://host/a?mail=me@host",
    "postgresql://me@host:5432/db?sslmode=require&sslkey=/key.pem&passfile=/home/me/.pgpass",
    "ray://head:10001",
    "databricks://profile:prefix",
    "sqlite:////data/studies.db",
    "C:\\home\\me@corp\\birds",
    "sqlite:////home/me@corp/a:b@c.db",
    "git@github.com:me/birds",
    "/data/token=1/birds@home",
    "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; --set takes key=value.",
]


@pytest.mark.parametrize("text", FORMS)
def test_secret_is_masked(text):
    masked = mask_secrets(text)
    assert SECRET not in masked
    assert "…" in masked


@pytest.mark.parametrize("text", FORMS)
def test_secret_is_masked_within_a_sentence(text):
    assert SECRET not in mask_secrets(f"--mlflow {text} cannot be used ({text!r}: no answer).")


@pytest.mark.parametrize("text", FORMS)
def test_masked_text_stays_as_it_is(text):
    assert mask_secrets(mask_secrets(text)) == mask_secrets(text)


@pytest.mark.parametrize("text", GOOD)
def test_text_without_a_secret_stays_as_it_is(text):
    assert mask_secrets(text) == text


def test_name_in_an_address_of_a_database_stays():
    assert mask_secrets("postgresql://me:SEKRET@host/db") == "postgresql://me:…@host/db"


@pytest.mark.parametrize("setting", ["storage", "mlflow", "out", "data", "weights", "cache", "start_from", "address"])
def test_setting_with_a_secret_is_refused_and_not_repeated(setting):
    with pytest.raises(UserError, match=rf"--{setting.replace('_', '-')} .*….* holds a password or a token") as refused:
        study_config({setting: "https://me:SEKRET@host"})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("address", ["s3://AKIA:SEK SEKRET@bucket", "s3://AKIA:SEK\nSEKRET@bucket"])
def test_secret_with_blanks_is_refused_and_not_repeated(address):
    with pytest.raises(UserError, match="holds a password") as refused:
        study_config({"data": address})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("address", [each for each in GOOD if "://" in each])
def test_setting_without_a_secret_is_taken(address):
    assert study_config({"mlflow": address, "storage": address}).mlflow == address


def test_connection_string_with_a_password_is_no_journal_file():
    with pytest.raises(UserError, match=r"password=….*PGPASSWORD"):
        study_config({"storage": "host=h password=SEKRET"})


def test_messages_for_users_hold_no_secret():
    assert str(UserError("cannot open http://SEKRET@host")) == "cannot open http://…@host"
