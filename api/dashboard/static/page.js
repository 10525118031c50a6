// What every page does.

import { localizeTimes } from "./format.js";

localizeTimes();
