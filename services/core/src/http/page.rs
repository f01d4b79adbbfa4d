//! Paging: `pageNo` and `pageSize` in the query, totals in response headers.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use tourin_chassis::http::{ApiError, Json, Params};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::messages;
use crate::domain::page::{InvalidPage, MAX_PAGE_NUMBER, MAX_PAGE_SIZE, Page, PageRequest};

/// The paging parameters, for the OpenAPI document; a test holds them against [`PageRequest`].
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by utoipa only")]
pub(super) struct PageParams {
    /// Which page, from 1.
    #[param(rename = "pageNo", minimum = 1, maximum = 9_223_372_036_854_775_807_u64, default = 1)]
    page_no: Option<u64>,
    /// Most items on a page.
    #[param(rename = "pageSize", minimum = 1, maximum = 100, default = 10)]
    page_size: Option<u32>,
}

/// The page that the query asks for.
pub(super) fn request(params: &Params) -> Result<PageRequest, ApiError> {
    let refusal = |error| {
        ApiError::invalid(match error {
            InvalidPage::Number => messages::invalid_page_number(MAX_PAGE_NUMBER),
            InvalidPage::Size => messages::invalid_page_size(MAX_PAGE_SIZE),
        })
    };
    let number = params.one("pageNo").map_err(|_| refusal(InvalidPage::Number))?;
    let size = params.one("pageSize").map_err(|_| refusal(InvalidPage::Size))?;
    PageRequest::new(number, size).map_err(refusal)
}

/// The headers of a page and their descriptions.
const HEADERS: [(HeaderName, &str); 5] = [
    (HeaderName::from_static("x-pagination-page"), "The page"),
    (HeaderName::from_static("x-pagination-page-size"), "Items on this page"),
    (HeaderName::from_static("x-pagination-page-limit"), "The page size asked for"),
    (HeaderName::from_static("x-pagination-total-page"), "Number of pages"),
    (HeaderName::from_static("x-pagination-total-item"), "Items on all pages"),
];

/// The items as a plain array, the paging in headers.
pub(super) fn answer<T: Serialize>(page: Page<T>) -> Response {
    let values = [
        page.request.number(),
        page.items.len() as u64,
        u64::from(page.request.size()),
        page.pages(),
        page.total,
    ];
    let mut response = Json(page.items).into_response();
    for ((name, _), value) in HEADERS.into_iter().zip(values) {
        response.headers_mut().insert(name, HeaderValue::from(value));
    }
    response
}

/// The 200 of a call that returns a page of `T`, for the OpenAPI document. Another call must
/// register `T`.
pub(super) struct PageOf<T>(PhantomData<T>);

impl<T: ToSchema> IntoResponses for PageOf<T> {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let items = ArrayBuilder::new().items(Ref::from_schema_name(T::name()));
        let body = ContentBuilder::new().schema(Some(items)).build();
        let mut response =
            ResponseBuilder::new().description("The page").content("application/json", body);
        for (name, description) in HEADERS {
            let header = HeaderBuilder::new()
                .schema(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)))
                .description(Some(description));
            response = response.header(name.as_str(), header.build());
        }
        BTreeMap::from([("200".to_owned(), response.build().into())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::page::DEFAULT_PAGE_SIZE;

    #[test]
    fn the_document_says_what_the_validator_does() {
        let document = serde_json::to_value(PageParams::into_params(|| None)).unwrap();
        let (number, size) = (&document[0], &document[1]);
        assert_eq!(number["name"], "pageNo");
        assert_eq!(number["schema"]["maximum"], MAX_PAGE_NUMBER);
        assert_eq!(size["name"], "pageSize");
        assert_eq!(size["schema"]["maximum"], MAX_PAGE_SIZE);
        assert_eq!(size["schema"]["default"], DEFAULT_PAGE_SIZE);
        for parameter in [number, size] {
            assert_eq!(parameter["schema"]["minimum"], 1);
            assert_eq!(parameter["required"], false);
        }
    }

    #[test]
    fn an_invalid_page_is_422() {
        for query in [
            "pageNo=0",
            "pageNo=-1",
            "pageNo=x",
            "pageNo=1.5",
            "pageNo=",
            "pageNo=99999999999999999999",
            "pageSize=0",
            "pageSize=101",
            "pageSize=4294967297",
            "pageNo=1&pageNo=2",
        ] {
            let error = request(&Params::parse(query)).unwrap_err();
            assert_eq!(error.status(), http::StatusCode::UNPROCESSABLE_ENTITY, "{query}");
        }
        assert_eq!(request(&Params::parse("")).unwrap(), PageRequest::default());
    }
}
