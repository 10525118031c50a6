// The API's description, read and tried out by Swagger UI. Requests carry the session's cookie, or the key that is given to
// "Authorize".

/* global SwaggerUIBundle */

import "./page.js";

SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", validatorUrl: null });
