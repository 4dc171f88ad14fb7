/* Uses the installed C interface as a stranger would. C99. */
#include <rarefy/rarefy.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  rarefy_model* model = NULL;
  const rarefy_status status = rarefy_model_load("no/such/folder", NULL, &model);
  printf("librarefy_c %s; loading nothing gives '%s': %s\n", rarefy_version_string(), rarefy_status_name(status),
         rarefy_last_error());
  if (rarefy_version() != RAREFY_VERSION_MAJOR * 10000 + RAREFY_VERSION_MINOR * 100 + RAREFY_VERSION_PATCH) return 1;
  return status != RAREFY_OK && model == NULL && strlen(rarefy_last_error()) > 0 ? 0 : 1;
}
