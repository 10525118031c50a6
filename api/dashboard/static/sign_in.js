// Who followed a link from another site came without the cookie; asked from here, the session may well be there.

import { request } from "./api.js";

const { signed_in: isSignedIn } = await request("/dashboard/session");
if (isSignedIn && !document.querySelector(".error")) location.replace(document.querySelector("[name=next]").value);
