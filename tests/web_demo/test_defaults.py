"""The page is for this machine unless another address is given."""

import ipaddress

from command_calls import parsed

from diffusers_ucgm.web_demo.defaults import HOST, PORT


def test_the_address_is_of_this_machine_alone():
    assert ipaddress.ip_address(HOST).is_loopback
    assert (parsed("serve").host, parsed("serve").port) == (HOST, PORT)
    assert PORT == 7860  # where Hugging Face Spaces look for an app
