"""Copies every object of a bucket below a prefix into a folder, and prints how many were sent in parts. ENDPOINT PREFIX FOLDER"""

import os
import sys

import boto3

endpoint, prefix, folder = sys.argv[1:]
client = boto3.client(
    "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
)
parts = 0
for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix + "/"):
    for entry in page.get("Contents", []):
        path = os.path.join(folder, entry["Key"][len(prefix) + 1 :])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        client.download_file("bucket", entry["Key"], path)
        parts += "-" in entry["ETag"]
print(parts)
