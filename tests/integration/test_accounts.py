from __future__ import annotations

from tests.integration.application import PASSWORD, Application, bearer, registration


async def test_who_registers_signs_in_and_sees_themselves(api: Application) -> None:
    user = await api.register("anna.petrova", locale="de", timezone="Europe/Berlin")
    me = await api.http.get("/v1/me", headers=await api.sign_in("Anna.Petrova"))
    assert me.status_code == 200
    assert me.json() == user
    print(me.json(), me.headers)
